//! The module itself: what stands between its callers and the other module.
//!
//! Every function writes its name down, and does what it is told to before or after it
//! passes the call on, or instead.
#![allow(
    unsafe_code,
    non_snake_case,
    unreachable_pub,
    reason = "a PKCS#11 module is C, and so are its names"
)]

use std::ffi::{CStr, c_char, c_void};
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use cryptoki_sys::*;

use crate::{CALLS, CONTROL, OVERLAP};

/// What the module knows of itself.
struct Module {
    folder: PathBuf,
    inner: CK_FUNCTION_LIST,
    altered: CK_FUNCTION_LIST,
}

// SAFETY: the tables hold functions only; nothing changes them.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

static MODULE: OnceLock<Module> = OnceLock::new();
/// Whether the token that vanishes was asked before.
static VANISHED: AtomicBool = AtomicBool::new(false);
/// Whether it went dead and was not initialised since.
static DEAD: AtomicBool = AtomicBool::new(false);
/// How many calls are at work.
static AT_WORK: AtomicUsize = AtomicUsize::new(0);

impl Module {
    /// # Panics
    /// Where the other module cannot be loaded: there is nobody to tell.
    fn load() -> Self {
        let folder = own_folder();
        let control = std::fs::read_to_string(folder.join(CONTROL)).unwrap();
        let inner = control.lines().find_map(|line| line.strip_prefix("inner "));
        let inner = std::path::Path::new(inner.unwrap());
        // SAFETY: it is a PKCS#11 module, which is never unloaded.
        let library = unsafe { Pkcs11::new(inner) }.unwrap();
        let mut list: *mut CK_FUNCTION_LIST = std::ptr::null_mut();
        // SAFETY: it writes a pointer to a table that lives as long as the library.
        let answer = unsafe { library.C_GetFunctionList(&raw mut list) };
        assert_eq!(answer, CKR_OK);
        std::mem::forget(library);
        // SAFETY: as above.
        let inner = unsafe { *list };
        Module {
            folder,
            inner,
            altered: altered(inner),
        }
    }

    fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join(CONTROL)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    fn note(&self, what: &str) {
        let calls = self.folder.join(CALLS);
        let opened = File::options().create(true).append(true).open(calls);
        if let Ok(mut file) = opened {
            let _ = file.write_all(format!("{what}\n").as_bytes());
        }
    }
}

fn module() -> &'static Module {
    MODULE.get_or_init(Module::load)
}

/// The folder of the file that this code was loaded from.
fn own_folder() -> PathBuf {
    let here = C_GetFunctionList as *const () as usize;
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let file = maps.lines().find_map(|line| {
        let (range, rest) = line.split_once(' ')?;
        let (from, to) = range.split_once('-')?;
        let bound = |text| usize::from_str_radix(text, 16).ok();
        let has = (bound(from)?..bound(to)?).contains(&here);
        has.then_some(rest.split_once('/')?.1)
    });
    let file = PathBuf::from(format!("/{}", file.unwrap()));
    file.parent().unwrap().to_owned()
}

/// The rest of the first line that begins so.
fn said<'a>(lines: &'a [String], what: &str) -> Option<&'a str> {
    lines
        .iter()
        .find_map(|line| line.strip_prefix(what)?.strip_prefix(' '))
}

fn number(text: &str) -> CK_ULONG {
    let digits = text.trim_start_matches("0x");
    CK_ULONG::from_str_radix(digits, 16).unwrap()
}

/// A call that is at work.
struct Call {
    lines: Vec<String>,
    /// What to answer instead of calling.
    answer: Option<CK_RV>,
}

impl Call {
    fn begin(function: &str) -> Self {
        let module = module();
        if AT_WORK.fetch_add(1, Ordering::SeqCst) > 0 {
            module.note(OVERLAP);
        }
        module.note(function);
        let mut lines = module.lines();
        while said(&lines, "wait") == Some(function) {
            std::thread::sleep(std::time::Duration::from_millis(5));
            lines = module.lines();
        }
        if said(&lines, "die") == Some(function) {
            std::process::abort();
        }
        let is_dead = lines.iter().any(|line| line == "dead");
        match function {
            "C_Initialize" if !is_dead => DEAD.store(false, Ordering::SeqCst),
            _ if is_dead => DEAD.store(true, Ordering::SeqCst),
            _ => {}
        }
        let answer = said(&lines, &format!("answer {function}")).map(number);
        let dead = DEAD.load(Ordering::SeqCst) && function != "C_Finalize";
        Call {
            answer: answer.or(dead.then_some(CKR_DEVICE_ERROR)),
            lines,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        AT_WORK.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Functions that pass the call on where they are not told to answer something else.
macro_rules! passed_on {
    ($($name:ident($($argument:ident: $kind:ty),*);)*) => {
        $(unsafe extern "C" fn $name($($argument: $kind),*) -> CK_RV {
            let call = Call::begin(stringify!($name));
            match (call.answer, module().inner.$name) {
                (Some(answer), _) => answer,
                // SAFETY: the arguments are the caller's.
                (None, Some(inner)) => unsafe { inner($($argument),*) },
                (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
            }
        })*

        /// The table of a module, with these functions instead of its own.
        fn with_passed_on(mut list: CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
            $(list.$name = Some($name);)*
            list
        }
    };
}

type Session = CK_SESSION_HANDLE;
type Object = CK_OBJECT_HANDLE;
type Length = *mut CK_ULONG;

passed_on! {
    C_Finalize(reserved: *mut c_void);
    C_GetMechanismList(slot: CK_SLOT_ID, list: *mut CK_MECHANISM_TYPE, count: Length);
    C_GetMechanismInfo(slot: CK_SLOT_ID, kind: CK_MECHANISM_TYPE, info: *mut CK_MECHANISM_INFO);
    C_InitToken(slot: CK_SLOT_ID, pin: *mut u8, length: CK_ULONG, label: *mut u8);
    C_InitPIN(session: Session, pin: *mut u8, length: CK_ULONG);
    C_OpenSession(
        slot: CK_SLOT_ID, flags: CK_FLAGS, application: *mut c_void, notify: CK_NOTIFY,
        session: *mut Session
    );
    C_CloseSession(session: Session);
    C_GetSessionInfo(session: Session, info: *mut CK_SESSION_INFO);
    C_Login(session: Session, user: CK_USER_TYPE, pin: *mut u8, length: CK_ULONG);
    C_Logout(session: Session);
    C_CreateObject(
        session: Session, template: *mut CK_ATTRIBUTE, count: CK_ULONG, object: *mut Object
    );
    C_CopyObject(
        session: Session, object: Object, template: *mut CK_ATTRIBUTE, count: CK_ULONG,
        copy: *mut Object
    );
    C_DestroyObject(session: Session, object: Object);
    C_GetAttributeValue(
        session: Session, object: Object, template: *mut CK_ATTRIBUTE, count: CK_ULONG
    );
    C_SetAttributeValue(
        session: Session, object: Object, template: *mut CK_ATTRIBUTE, count: CK_ULONG
    );
    C_FindObjectsInit(session: Session, template: *mut CK_ATTRIBUTE, count: CK_ULONG);
    C_FindObjects(session: Session, objects: *mut Object, most: CK_ULONG, count: Length);
    C_FindObjectsFinal(session: Session);
    C_SignInit(session: Session, mechanism: *mut CK_MECHANISM, key: Object);
    C_Sign(
        session: Session, data: *mut u8, length: CK_ULONG, signature: *mut u8, its_length: Length
    );
    C_DecryptInit(session: Session, mechanism: *mut CK_MECHANISM, key: Object);
    C_Decrypt(
        session: Session, data: *mut u8, length: CK_ULONG, plain: *mut u8, its_length: Length
    );
    C_GenerateKeyPair(
        session: Session, mechanism: *mut CK_MECHANISM, public: *mut CK_ATTRIBUTE,
        public_count: CK_ULONG, private: *mut CK_ATTRIBUTE, private_count: CK_ULONG,
        public_key: *mut Object, private_key: *mut Object
    );
    C_DeriveKey(
        session: Session, mechanism: *mut CK_MECHANISM, base: Object,
        template: *mut CK_ATTRIBUTE, count: CK_ULONG, key: *mut Object
    );
}

fn altered(inner: CK_FUNCTION_LIST) -> CK_FUNCTION_LIST {
    CK_FUNCTION_LIST {
        version: CK_VERSION {
            major: 2,
            minor: 40,
        },
        C_Initialize: Some(C_Initialize),
        C_GetInfo: Some(C_GetInfo),
        C_GetFunctionList: Some(C_GetFunctionList),
        C_GetSlotList: Some(C_GetSlotList),
        C_GetSlotInfo: Some(C_GetSlotInfo),
        C_GetTokenInfo: Some(C_GetTokenInfo),
        ..with_passed_on(inner)
    }
}

/// The one function that a module must export (PKCS#11 v2.40 §5.4).
///
/// # Safety
/// `list` must be null or valid for writes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn C_GetFunctionList(list: *mut *mut CK_FUNCTION_LIST) -> CK_RV {
    if list.is_null() {
        return CKR_ARGUMENTS_BAD;
    }
    // SAFETY: it was checked; nobody writes to the table.
    unsafe { *list = (&raw const module().altered).cast_mut() };
    CKR_OK
}

unsafe extern "C" fn C_Initialize(arguments: *mut c_void) -> CK_RV {
    let call = Call::begin("C_Initialize");
    if let Some(answer) = call.answer {
        return answer;
    }
    let arguments = arguments.cast::<CK_C_INITIALIZE_ARGS>();
    // SAFETY: it is null or what the standard says.
    let given = unsafe { arguments.as_ref() };
    let flags = given.map_or(0, |given| given.flags);
    if call.lines.iter().any(|line| line == "cannot lock") && flags & CKF_OS_LOCKING_OK != 0 {
        return CKR_CANT_LOCK;
    }
    let mut plain = given.copied().unwrap_or_default();
    if let Some(wanted) = said(&call.lines, "wants") {
        let reserved = plain.pReserved.cast::<c_char>();
        // SAFETY: who gives something gives a string.
        let reserved = (!reserved.is_null()).then(|| unsafe { CStr::from_ptr(reserved) });
        if reserved.and_then(|reserved| reserved.to_str().ok()) != Some(wanted) {
            return CKR_ARGUMENTS_BAD;
        }
        plain.pReserved = std::ptr::null_mut();
    }
    let Some(inner) = module().inner.C_Initialize else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    // SAFETY: it lives until the call is over.
    unsafe { inner((&raw mut plain).cast()) }
}

unsafe extern "C" fn C_GetInfo(info: *mut CK_INFO) -> CK_RV {
    let call = Call::begin("C_GetInfo");
    let answer = match (call.answer, module().inner.C_GetInfo) {
        (Some(answer), _) => answer,
        // SAFETY: the argument is the caller's.
        (None, Some(inner)) => unsafe { inner(info) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    };
    // SAFETY: as above.
    if let (CKR_OK, Some(info)) = (answer, unsafe { info.as_mut() })
        && let Some(text) = said(&call.lines, "library")
    {
        pad(&mut info.manufacturerID, text);
    }
    answer
}

/// The slots of the other module whose tokens are to be seen.
unsafe extern "C" fn C_GetSlotList(
    present: CK_BBOOL,
    list: *mut CK_SLOT_ID,
    count: Length,
) -> CK_RV {
    let call = Call::begin("C_GetSlotList");
    if let Some(answer) = call.answer {
        return answer;
    }
    let Some(inner) = module().inner.C_GetSlotList else {
        return CKR_FUNCTION_NOT_SUPPORTED;
    };
    let mut all = [0; 256];
    let mut found = all.len() as CK_ULONG;
    // SAFETY: the buffer is as long as it is said to be.
    let answer = unsafe { inner(present, all.as_mut_ptr(), &raw mut found) };
    if answer != CKR_OK {
        return answer;
    }
    let only: Vec<&str> = (call.lines.iter())
        .filter_map(|line| line.strip_prefix("only "))
        .collect();
    let slots = all.iter().take(found as usize);
    let slots: Vec<CK_SLOT_ID> = slots
        .filter(|slot| only.is_empty() || only.contains(&&*label(**slot)))
        .copied()
        .collect();
    // SAFETY: the arguments are the caller's.
    let Some(count) = (unsafe { count.as_mut() }) else {
        return CKR_ARGUMENTS_BAD;
    };
    let room = std::mem::replace(count, slots.len() as CK_ULONG);
    if list.is_null() {
        return CKR_OK;
    }
    if room < slots.len() as CK_ULONG {
        return CKR_BUFFER_TOO_SMALL;
    }
    // SAFETY: there is room for so many.
    unsafe { list.copy_from(slots.as_ptr(), slots.len()) };
    CKR_OK
}

/// The label of the token in a slot, as the other module has it.
fn label(slot: CK_SLOT_ID) -> String {
    let mut info = CK_TOKEN_INFO::default();
    if let Some(inner) = module().inner.C_GetTokenInfo {
        // SAFETY: it writes what was handed to it.
        unsafe { inner(slot, &raw mut info) };
    }
    let label = String::from_utf8_lossy(&info.label);
    label.trim_end().to_owned()
}

unsafe extern "C" fn C_GetSlotInfo(slot: CK_SLOT_ID, info: *mut CK_SLOT_INFO) -> CK_RV {
    let call = Call::begin("C_GetSlotInfo");
    let answer = match (call.answer, module().inner.C_GetSlotInfo) {
        (Some(answer), _) => answer,
        // SAFETY: the arguments are the caller's.
        (None, Some(inner)) => unsafe { inner(slot, info) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    };
    // SAFETY: as above.
    if let (CKR_OK, Some(info)) = (answer, unsafe { info.as_mut() }) {
        for (what, field) in [
            ("slot manufacturer", &mut info.manufacturerID[..]),
            ("slot description", &mut info.slotDescription[..]),
        ] {
            if let Some(text) = said(&call.lines, what) {
                pad(field, text);
            }
        }
    }
    answer
}

unsafe extern "C" fn C_GetTokenInfo(slot: CK_SLOT_ID, info: *mut CK_TOKEN_INFO) -> CK_RV {
    let call = Call::begin("C_GetTokenInfo");
    let answer = match (call.answer, module().inner.C_GetTokenInfo) {
        (Some(answer), _) => answer,
        // SAFETY: the arguments are the caller's.
        (None, Some(inner)) => unsafe { inner(slot, info) },
        (None, None) => CKR_FUNCTION_NOT_SUPPORTED,
    };
    // SAFETY: as above.
    if let (CKR_OK, Some(info)) = (answer, unsafe { info.as_mut() }) {
        alter_token(&call.lines, info);
    }
    answer
}

fn alter_token(lines: &[String], info: &mut CK_TOKEN_INFO) {
    for (what, field) in [
        ("token label", &mut info.label[..]),
        ("token manufacturer", &mut info.manufacturerID[..]),
        ("token model", &mut info.model[..]),
        ("token serial", &mut info.serialNumber[..]),
    ] {
        if let Some(text) = said(lines, what) {
            pad(field, text);
        }
    }
    if let Some(flags) = said(lines, "token set") {
        info.flags |= number(flags);
    }
    if let Some(flags) = said(lines, "token clear") {
        info.flags &= !number(flags);
    }
    if let Some((least, most)) = said(lines, "token pin").and_then(|both| both.split_once(' ')) {
        (info.ulMinPinLen, info.ulMaxPinLen) = (least.parse().unwrap(), most.parse().unwrap());
    }
    if lines.iter().any(|line| line == "token vanishes") {
        if VANISHED.swap(true, Ordering::Relaxed) {
            info.flags &= !CKF_TOKEN_INITIALIZED;
        }
        pad(&mut info.serialNumber, "");
    }
    if lines.iter().any(|line| line == "clock malformed") {
        info.flags |= CKF_CLOCK_ON_TOKEN;
        info.utcTime = *b"03:24:04\0\0\0\0\0\0\0\0";
    }
}

/// As the standard pads texts: with blanks.
fn pad(field: &mut [u8], text: &str) {
    field.fill(b' ');
    field[..text.len()].copy_from_slice(text.as_bytes());
}
