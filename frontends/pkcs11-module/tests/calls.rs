//! The functions, called as programs call them, and as none should.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use claviger_engine::IdParams;
use claviger_pkcs11_module::{C_GetFunctionList, C_GetInterface, C_GetInterfaceList};
use claviger_tests::SoftHsm;
use claviger_token::{PublicKey, Signature, SignatureScheme};
use common::Stage;
use cryptoki_sys::*;

/// The module has one state in a process, and so has the environment.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn stage() -> (MutexGuard<'static, ()>, Stage) {
    let alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let stage = Stage::new();
    // SAFETY: other tests wait, and the threads of the stage read no environment.
    unsafe { std::env::set_var("CLAVIGER_DAEMON", stage.socket()) };
    (alone, stage)
}

/// The functions of 2.40, with arguments as Rust has them. What is handed over is valid for the
/// call, or null where a test wants that.
struct Module(&'static CK_FUNCTION_LIST);

macro_rules! call {
    ($module:expr, $function:ident $(, $argument:expr)*) => {
        // SAFETY: the arguments are valid, or null, which the module has to refuse.
        unsafe { ($module.0.$function.unwrap())($($argument),*) }
    };
}

impl Module {
    fn new() -> Self {
        let mut list = null_mut();
        // SAFETY: it is written to, and leads to what stays.
        unsafe {
            assert_eq!(C_GetFunctionList(&raw mut list), CKR_OK);
            Module(&*list)
        }
    }

    fn initialise(&self) -> CK_RV {
        call!(self, C_Initialize, null_mut())
    }

    fn finalise(&self) -> CK_RV {
        call!(self, C_Finalize, null_mut())
    }

    /// The slots with a token.
    fn slots(&self) -> Vec<CK_SLOT_ID> {
        let mut count = 0;
        let listed = call!(self, C_GetSlotList, CK_TRUE, null_mut(), &raw mut count);
        assert_eq!(listed, CKR_OK);
        let mut slots = vec![0; usize::try_from(count).unwrap()];
        let (list, count) = (slots.as_mut_ptr(), &raw mut count);
        assert_eq!(call!(self, C_GetSlotList, CK_TRUE, list, count), CKR_OK);
        slots
    }

    fn open(&self, slot: CK_SLOT_ID) -> Result<CK_SESSION_HANDLE, CK_RV> {
        let (flags, mut session) = (CKF_SERIAL_SESSION, 0);
        let out = &raw mut session;
        match call!(self, C_OpenSession, slot, flags, null_mut(), None, out) {
            CKR_OK => Ok(session),
            code => Err(code),
        }
    }

    fn begin(&self, session: CK_SESSION_HANDLE, mechanism: CK_MECHANISM_TYPE) -> CK_RV {
        let mut mechanism = CK_MECHANISM {
            mechanism,
            pParameter: null_mut(),
            ulParameterLen: 0,
        };
        call!(self, C_SignInit, session, &raw mut mechanism, PRIVATE)
    }

    fn sign(&self, session: CK_SESSION_HANDLE, data: &[u8]) -> Result<Vec<u8>, CK_RV> {
        let (mut signature, mut length) = (vec![0; 512], 512);
        let (data, count) = (data.as_ptr().cast_mut(), data.len() as CK_ULONG);
        let (out, out_length) = (signature.as_mut_ptr(), &raw mut length);
        match call!(self, C_Sign, session, data, count, out, out_length) {
            CKR_OK => {
                signature.truncate(usize::try_from(length).unwrap());
                Ok(signature)
            }
            code => Err(code),
        }
    }

    /// Signs a message with a key of P-256.
    fn signs(&self, session: CK_SESSION_HANDLE) -> Result<Vec<u8>, CK_RV> {
        match self.begin(session, CKM_ECDSA_SHA256) {
            CKR_OK => self.sign(session, MESSAGE),
            code => Err(code),
        }
    }
}

const PUBLIC: CK_OBJECT_HANDLE = 1;
const PRIVATE: CK_OBJECT_HANDLE = 2;
const MESSAGE: &[u8] = b"Meet me at the bridge.";

fn is_valid(key: &PublicKey, signature: Vec<u8>) -> bool {
    let signature = Signature::new(SignatureScheme::EcdsaP256Sha256, signature).unwrap();
    key.verify(MESSAGE, &signature).is_ok()
}

#[test]
fn calls_in_a_wrong_order_are_answered_as_the_standard_says() {
    let (_alone, stage) = stage();
    let key = stage.in_memory("alice", IdParams::P256);
    let _daemon = stage.serve();
    let module = Module::new();
    let mut count = 0;
    let uninitialised = CKR_CRYPTOKI_NOT_INITIALIZED;
    let listed = call!(module, C_GetSlotList, CK_TRUE, null_mut(), &raw mut count);
    assert_eq!(listed, uninitialised);
    assert_eq!(module.open(1), Err(uninitialised));
    assert_eq!(module.finalise(), uninitialised);
    assert_eq!(module.initialise(), CKR_OK);
    assert_eq!(module.initialise(), CKR_CRYPTOKI_ALREADY_INITIALIZED);
    // No slot was listed yet.
    assert_eq!(module.open(1), Err(CKR_SLOT_ID_INVALID));
    assert_eq!(module.slots(), [1]);
    for slot in [0, 2, CK_SLOT_ID::MAX] {
        assert_eq!(module.open(slot), Err(CKR_SLOT_ID_INVALID));
    }
    assert_eq!(
        module.begin(7, CKM_ECDSA_SHA256),
        CKR_SESSION_HANDLE_INVALID
    );
    let session = module.open(1).unwrap();
    assert_eq!(
        module.sign(session, b"x"),
        Err(CKR_OPERATION_NOT_INITIALIZED)
    );
    let done = call!(module, C_FindObjectsFinal, session);
    assert_eq!(done, CKR_OPERATION_NOT_INITIALIZED);
    assert_eq!(module.begin(session, CKM_RSA_PKCS), CKR_MECHANISM_INVALID);
    assert_eq!(module.begin(session, CKM_ECDSA_SHA256), CKR_OK);
    assert_eq!(
        module.begin(session, CKM_ECDSA_SHA256),
        CKR_OPERATION_ACTIVE
    );
    // The length is told, a buffer that is too small is refused, and the signature goes on.
    for (length, answer) in [(0, CKR_OK), (63, CKR_BUFFER_TOO_SMALL)] {
        let mut buffer = [0; 63];
        let out = if length == 0 {
            null_mut()
        } else {
            buffer.as_mut_ptr()
        };
        let mut told = length;
        let (data, told_at) = (MESSAGE.as_ptr().cast_mut(), &raw mut told);
        let asked = call!(module, C_Sign, session, data, 1, out, told_at);
        assert_eq!((asked, told, buffer), (answer, 64, [0; 63]));
    }
    let signature = module.sign(session, MESSAGE).unwrap();
    assert!(is_valid(&key, signature));
    assert_eq!(
        module.sign(session, b"x"),
        Err(CKR_OPERATION_NOT_INITIALIZED)
    );
    // In parts.
    assert_eq!(module.begin(session, CKM_ECDSA_SHA256), CKR_OK);
    for part in MESSAGE.chunks(5) {
        let (part, length) = (part.as_ptr().cast_mut(), part.len() as CK_ULONG);
        assert_eq!(call!(module, C_SignUpdate, session, part, length), CKR_OK);
    }
    assert_eq!(module.sign(session, b"x"), Err(CKR_OPERATION_ACTIVE));
    let (mut signature, mut length) = (vec![0; 64], 64);
    let (out, told) = (signature.as_mut_ptr(), &raw mut length);
    assert_eq!(call!(module, C_SignFinal, session, out, told), CKR_OK);
    assert!(is_valid(&key, signature));
    // What this module does not do, it says.
    let data = MESSAGE.as_ptr().cast_mut();
    let refused = call!(module, C_Verify, session, data, 1, data, 1);
    assert_eq!(refused, CKR_FUNCTION_NOT_SUPPORTED);
    assert_eq!(call!(module, C_Logout, session), CKR_USER_NOT_LOGGED_IN);
    let other_user = call!(module, C_Login, session, CKU_SO, data, 4);
    assert_eq!(other_user, CKR_USER_TYPE_INVALID);
    // Keys in memory need no PIN, and none is asked for.
    assert_eq!(
        call!(module, C_Login, session, CKU_USER, null_mut(), 0),
        CKR_OK
    );
    assert_eq!(call!(module, C_CloseSession, session), CKR_OK);
    assert_eq!(
        call!(module, C_CloseSession, session),
        CKR_SESSION_HANDLE_INVALID
    );
    let session = module.open(1).unwrap();
    assert_eq!(module.finalise(), CKR_OK);
    assert_eq!(module.signs(session), Err(uninitialised));
    assert_eq!(module.initialise(), CKR_OK);
    assert_eq!(module.signs(session), Err(CKR_SESSION_HANDLE_INVALID));
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn what_is_null_is_refused_and_attributes_are_shown_as_far_as_there_is_room() {
    let (_alone, stage) = stage();
    stage.in_memory("alice", IdParams::P256);
    let _daemon = stage.serve();
    let module = Module::new();
    let mut arguments_with_more;
    // SAFETY: null, which has to be refused, or valid; arguments of zeros are none.
    unsafe {
        assert_eq!(C_GetFunctionList(null_mut()), CKR_ARGUMENTS_BAD);
        let none = C_GetInterface(null_mut(), null_mut(), null_mut(), 0);
        assert_eq!(none, CKR_ARGUMENTS_BAD);
        assert_eq!(
            C_GetInterfaceList(null_mut(), null_mut()),
            CKR_ARGUMENTS_BAD
        );
        let mut count = 0;
        assert_eq!(C_GetInterfaceList(null_mut(), &raw mut count), CKR_OK);
        assert_eq!(count, 2);
        let (mut version, mut interface) = (CK_VERSION { major: 3, minor: 0 }, null_mut());
        let found = C_GetInterface(null_mut(), &raw mut version, &raw mut interface, 0);
        assert_eq!(found, CKR_OK);
        let list = (*interface).pFunctionList.cast::<CK_FUNCTION_LIST_3_0>();
        assert_eq!((*list).version.major, 3);
        assert!((*list).C_MessageVerifyFinal.is_some());
        version.minor = 9;
        let found = C_GetInterface(null_mut(), &raw mut version, &raw mut interface, 0);
        assert_eq!(found, CKR_FUNCTION_FAILED);
        let mut arguments: CK_C_INITIALIZE_ARGS = std::mem::zeroed();
        arguments.pReserved = std::ptr::dangling_mut();
        arguments_with_more = arguments;
    }
    let with_more = (&raw mut arguments_with_more).cast();
    assert_eq!(call!(module, C_Initialize, with_more), CKR_ARGUMENTS_BAD);
    assert_eq!(module.initialise(), CKR_OK);
    let bad = CKR_ARGUMENTS_BAD;
    assert_eq!(call!(module, C_GetInfo, null_mut()), bad);
    assert_eq!(call!(module, C_GetSlotList, 1, null_mut(), null_mut()), bad);
    assert_eq!(module.slots(), [1]);
    assert_eq!(call!(module, C_GetSlotInfo, 1, null_mut()), bad);
    assert_eq!(call!(module, C_GetTokenInfo, 1, null_mut()), bad);
    assert_eq!(
        call!(module, C_GetMechanismList, 1, null_mut(), null_mut()),
        bad
    );
    let opened = call!(
        module,
        C_OpenSession,
        1,
        CKF_SERIAL_SESSION,
        null_mut(),
        None,
        null_mut()
    );
    assert_eq!(opened, bad);
    let session = module.open(1).unwrap();
    assert_eq!(call!(module, C_GetSessionInfo, session, null_mut()), bad);
    assert_eq!(call!(module, C_SignInit, session, null_mut(), PRIVATE), bad);
    assert_eq!(
        call!(module, C_FindObjectsInit, session, null_mut(), 1),
        bad
    );
    assert_eq!(
        call!(module, C_GetAttributeValue, session, PUBLIC, null_mut(), 1),
        bad
    );
    assert_eq!(module.begin(session, CKM_ECDSA_SHA256), CKR_OK);
    let data = MESSAGE.as_ptr().cast_mut();
    assert_eq!(
        call!(module, C_Sign, session, data, 1, null_mut(), null_mut()),
        bad
    );
    let mut length = 64;
    let signed = call!(
        module,
        C_Sign,
        session,
        null_mut(),
        1,
        data,
        &raw mut length
    );
    assert_eq!(signed, bad);

    let attribute = |kind, value: *mut u8, length| CK_ATTRIBUTE {
        type_: kind,
        pValue: value.cast(),
        ulValueLen: length,
    };
    let (mut class, mut small) = ([0_u8; 8], [0_u8; 3]);
    let mut wanted = [
        attribute(CKA_CLASS, class.as_mut_ptr(), 8),
        attribute(CKA_LABEL, small.as_mut_ptr(), 3),
        attribute(CKA_ID, null_mut(), 0),
        attribute(CKA_MODULUS, null_mut(), 0),
        attribute(CKA_VALUE, null_mut(), 0),
    ];
    let (list, count) = (wanted.as_mut_ptr(), wanted.len() as CK_ULONG);
    let shown = call!(module, C_GetAttributeValue, session, PRIVATE, list, count);
    assert_eq!(shown, CKR_ATTRIBUTE_SENSITIVE);
    let lengths = wanted.map(|attribute| attribute.ulValueLen);
    let none = CK_ULONG::MAX;
    assert_eq!(lengths, [8, none, 20, none, none]);
    assert_eq!(CK_ULONG::from_ne_bytes(class), CKO_PRIVATE_KEY);
    assert_eq!(small, [0; 3]);
    let stranger = call!(module, C_GetAttributeValue, session, 99, list, count);
    assert_eq!(stranger, CKR_OBJECT_HANDLE_INVALID);
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn a_daemon_that_is_gone_is_a_removed_device_and_the_next_call_finds_it_again() {
    let (_alone, stage) = stage();
    let key = stage.in_memory("alice", IdParams::P256);
    let daemon = stage.serve();
    let module = Module::new();
    assert_eq!(module.initialise(), CKR_OK);
    let slots = module.slots();
    let session = module.open(slots[0]).unwrap();
    assert!(is_valid(&key, module.signs(session).unwrap()));
    drop(daemon);
    assert_eq!(module.signs(session), Err(CKR_DEVICE_REMOVED));
    let daemon = stage.serve();
    assert!(is_valid(&key, module.signs(session).unwrap()));
    drop(daemon);
    // Without a daemon there is no token, and the slot comes back with it.
    assert!(module.slots().is_empty());
    let _daemon = stage.serve();
    assert_eq!(module.slots(), slots);
    assert!(is_valid(&key, module.signs(session).unwrap()));
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn a_listing_without_a_daemon_ends_no_session() {
    let (_alone, stage) = stage();
    let key = stage.in_memory("alice", IdParams::P256);
    let daemon = stage.serve();
    let module = Module::new();
    assert_eq!(module.initialise(), CKR_OK);
    let slots = module.slots();
    let session = module.open(slots[0]).unwrap();
    drop(daemon);
    assert!(module.slots().is_empty());
    assert_eq!(module.signs(session), Err(CKR_DEVICE_REMOVED));
    let _daemon = stage.serve();
    // Nobody lists the slots again.
    assert!(is_valid(&key, module.signs(session).unwrap()));
    assert_eq!(module.slots(), slots);
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn who_is_not_logged_in_any_more_can_log_in_again() {
    let (_alone, stage) = stage();
    let token = SoftHsm::new();
    let (backend, access) = (token.backend(), token.access());
    let key = stage.generate("hard", &backend, IdParams::P256, access);
    stage.lock();
    let daemon = stage.serve();
    let module = Module::new();
    assert_eq!(module.initialise(), CKR_OK);
    let session = module.open(module.slots()[0]).unwrap();
    let log_in = || {
        let (pin, length) = (SoftHsm::PIN.as_ptr().cast_mut(), SoftHsm::PIN.len());
        call!(module, C_Login, session, CKU_USER, pin, length as CK_ULONG)
    };
    assert_eq!(log_in(), CKR_OK);
    assert_eq!(log_in(), CKR_USER_ALREADY_LOGGED_IN);
    assert!(is_valid(&key, module.signs(session).unwrap()));
    // Another daemon knows no PIN, and its token is closed.
    drop(daemon);
    stage.lock();
    let _daemon = stage.serve();
    assert_eq!(module.signs(session), Err(CKR_USER_NOT_LOGGED_IN));
    assert_eq!(call!(module, C_Logout, session), CKR_USER_NOT_LOGGED_IN);
    assert_eq!(log_in(), CKR_OK);
    assert!(is_valid(&key, module.signs(session).unwrap()));
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn threads_on_one_session_get_one_signature_for_each_that_was_begun() {
    let (_alone, stage) = stage();
    let key = stage.in_memory("alice", IdParams::P256);
    let _daemon = stage.serve();
    let module = Module::new();
    assert_eq!(module.initialise(), CKR_OK);
    let session = module.open(module.slots()[0]).unwrap();
    let work = || {
        let mut signed = 0;
        for _ in 0..20 {
            // Whoever finds it begun leaves it to others.
            let begun = module.begin(session, CKM_ECDSA_SHA256);
            assert!(matches!(begun, CKR_OK | CKR_OPERATION_ACTIVE), "{begun:x}");
            match module.sign(session, MESSAGE) {
                Ok(signature) => {
                    assert!(is_valid(&key, signature));
                    signed += 1;
                }
                Err(code) => assert_eq!(code, CKR_OPERATION_NOT_INITIALIZED),
            }
        }
        signed
    };
    let signed: u32 = std::thread::scope(|scope| {
        let threads = [(); 4].map(|()| scope.spawn(work));
        threads.map(|thread| thread.join().unwrap()).iter().sum()
    });
    assert!(signed > 0);
    assert_eq!(module.finalise(), CKR_OK);
}

#[test]
fn a_forked_child_has_no_session_and_makes_a_connection_of_its_own() {
    let (_alone, stage) = stage();
    let key = stage.in_memory("alice", IdParams::P256);
    let _daemon = stage.serve();
    let module = Module::new();
    assert_eq!(module.initialise(), CKR_OK);
    let session = module.open(module.slots()[0]).unwrap();
    assert!(is_valid(&key, module.signs(session).unwrap()));
    let in_child = || {
        let is_new = module.signs(session) == Err(CKR_CRYPTOKI_NOT_INITIALIZED)
            && module.initialise() == CKR_OK;
        let own = module
            .open(module.slots()[0])
            .and_then(|own| module.signs(own));
        is_new
            && own.is_ok_and(|signature| is_valid(&key, signature))
            && module.finalise() == CKR_OK
    };
    // SAFETY: the child calls the module and ends; memory is all that it shares with the threads of
    // its parent, and the system's allocator works in a child.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let is_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(in_child));
        // SAFETY: it ends at once, without what its parent left to be done.
        unsafe { libc::_exit(i32::from(is_well.ok() != Some(true))) };
    }
    let mut status = 0;
    // SAFETY: the status is written to.
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    assert_eq!(status, 0, "the child failed");
    // The parent's connection is as it was.
    assert!(is_valid(&key, module.signs(session).unwrap()));
    assert_eq!(module.finalise(), CKR_OK);
}
