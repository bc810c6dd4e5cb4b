//! Trussed, the operating system under `piv-authenticator`, with the backends that it
//! wants.

use std::path::Path;

use rand_core::OsRng;
use trussed::backend::{Backend as _, BackendId};
use trussed::pipe::TrussedChannel;
use trussed::platform::Platform;
use trussed::serde_extensions::{ExtensionDispatch, ExtensionId};
use trussed::service::ServiceResources;
use trussed::types::Context;
use trussed::virt::{Client, Runner, StorageConfig, Store, StoreConfig, UserInterface};
use trussed_auth::AuthExtension;
use trussed_auth_backend::{AuthBackend, AuthContext, FilesystemLayout};
use trussed_chunked::ChunkedExtension;
use trussed_core::Error;
use trussed_core::api::{Reply, Request, reply, request};
use trussed_core::types::Location;
use trussed_hpke::HpkeExtension;
use trussed_rsa_alloc::SoftwareRsa;
use trussed_staging::{StagingBackend, StagingContext};
use trussed_wrap_key_to_file::WrapKeyToFileExtension;

/// Runs `card` from power on to power off. What it stores is in `folder`.
pub(crate) fn power_on<R>(folder: &Path, card: impl FnOnce(Client<'_, Dispatch>) -> R) -> R {
    let mut storage = StoreConfig {
        internal: StorageConfig::filesystem(folder.join("internal")),
        external: StorageConfig::filesystem(folder.join("external")),
        volatile: StorageConfig::ram(),
    };
    storage.with_store(|store| {
        let channel = TrussedChannel::new();
        #[allow(clippy::unwrap_used, reason = "a new channel is whole")]
        let (requester, responder) = channel.split().unwrap();
        let mut runner = Runner::new();
        runner.add_endpoint(responder, "piv", BACKENDS);
        let client = Client::new(requester, runner.syscall(), None);
        let machine = Machine {
            random: OsRng,
            store,
            user: UserInterface::new(),
        };
        runner.run(machine, Dispatch::new(), || card(client))
    })
}

struct Machine<'a> {
    random: OsRng,
    store: Store<'a>,
    user: UserInterface,
}

impl<'a> Platform for Machine<'a> {
    type R = OsRng;
    type S = Store<'a>;
    type UI = UserInterface;

    fn rng(&mut self) -> &mut OsRng {
        &mut self.random
    }

    fn store(&self) -> Store<'a> {
        self.store
    }

    fn user_interface(&mut self) -> &mut UserInterface {
        &mut self.user
    }
}

/// Who is asked, in this order, until one knows what to do.
const BACKENDS: &[BackendId<Backend>] = &[
    BackendId::Custom(Backend::Rsa),
    BackendId::Custom(Backend::Auth),
    BackendId::Custom(Backend::Staging),
    BackendId::Core,
];

pub(crate) enum Backend {
    Rsa,
    Auth,
    Staging,
}

#[derive(Default)]
pub(crate) struct Contexts {
    auth: AuthContext,
    staging: StagingContext,
}

#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Extension {
    Auth,
    Chunked,
    Hpke,
    WrapKeyToFile,
}

const EXTENSIONS: [Extension; 4] = [
    Extension::Auth,
    Extension::Chunked,
    Extension::Hpke,
    Extension::WrapKeyToFile,
];

impl From<Extension> for u8 {
    fn from(extension: Extension) -> u8 {
        extension as u8
    }
}

impl TryFrom<u8> for Extension {
    type Error = Error;

    fn try_from(number: u8) -> Result<Extension, Error> {
        let known = EXTENSIONS.get(usize::from(number));
        known.copied().ok_or(Error::FunctionNotSupported)
    }
}

pub(crate) struct Dispatch {
    auth: AuthBackend,
    staging: StagingBackend,
}

impl Dispatch {
    fn new() -> Dispatch {
        Dispatch {
            auth: AuthBackend::new(Location::Internal, FilesystemLayout::V1),
            staging: StagingBackend::new(),
        }
    }
}

impl ExtensionId<AuthExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Auth;
}

impl ExtensionId<ChunkedExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Chunked;
}

impl ExtensionId<HpkeExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::Hpke;
}

impl ExtensionId<WrapKeyToFileExtension> for Dispatch {
    type Id = Extension;
    const ID: Extension = Extension::WrapKeyToFile;
}

impl ExtensionDispatch for Dispatch {
    type BackendId = Backend;
    type Context = Contexts;
    type ExtensionId = Extension;

    fn core_request<P: Platform>(
        &mut self,
        backend: &Backend,
        context: &mut Context<Contexts>,
        request: &Request,
        resources: &mut ServiceResources<P>,
    ) -> Result<Reply, Error> {
        let Context { core, backends, .. } = context;
        match backend {
            Backend::Rsa => SoftwareRsa.request(core, &mut (), request, resources),
            Backend::Auth => (self.auth).request(core, &mut backends.auth, request, resources),
            Backend::Staging => {
                (self.staging).request(core, &mut backends.staging, request, resources)
            }
        }
    }

    fn extension_request<P: Platform>(
        &mut self,
        backend: &Backend,
        extension: &Extension,
        context: &mut Context<Contexts>,
        request: &request::SerdeExtension,
        resources: &mut ServiceResources<P>,
    ) -> Result<reply::SerdeExtension, Error> {
        let Context { core, backends, .. } = context;
        let Contexts { auth, staging } = backends;
        macro_rules! ask {
            ($extension:ty, $backend:ident) => {
                trussed::serde_extensions::ExtensionImpl::<$extension>::extension_request_serialized(
                    &mut self.$backend,
                    core,
                    $backend,
                    request,
                    resources,
                )
            };
        }
        match (backend, extension) {
            (Backend::Auth, Extension::Auth) => ask!(AuthExtension, auth),
            (Backend::Staging, Extension::Chunked) => ask!(ChunkedExtension, staging),
            (Backend::Staging, Extension::Hpke) => ask!(HpkeExtension, staging),
            (Backend::Staging, Extension::WrapKeyToFile) => ask!(WrapKeyToFileExtension, staging),
            _ => Err(Error::RequestNotAvailable),
        }
    }
}
