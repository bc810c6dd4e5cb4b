//! The commands, a module for each group.

mod contact;
mod crypt;
mod delete;
mod doctor;
mod enter;
mod identities;
mod open;
mod reads_for;
mod sign;
mod tokens;

use claviger_token::Error;

use crate::args::{Args, Command, ContactCommand, ReadsForCommand};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// What a command answers: the exit status where it did not fail.
pub(crate) type Answer = Result<u8, Failure>;

/// Success.
pub(crate) const FINE: u8 = 0;

/// Runs the command; the result is the exit status.
pub(crate) fn run(args: Args) -> Answer {
    let session = Session::new(&args)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| Failure::io("the program cannot start", &e))?;
    let answer = runtime.block_on(dispatch(&session, args.command));
    // What still blocks on a device is not waited for.
    runtime.shutdown_background();
    answer.map_err(|failure| failure.after(session.interrupt.signal()))
}

/// Waits no longer than `--timeout` allows, where no driver can be told of it.
async fn in_time(session: &Session, command: impl Future<Output = Answer>) -> Answer {
    match session.deadline {
        None => command.await,
        Some(deadline) => tokio::time::timeout_at(deadline.into(), command)
            .await
            .unwrap_or_else(|_| Err(Error::DeadlineExceeded.into())),
    }
}

/// Whether there is nothing to be done where standard output is closed: what the command
/// answers would be lost. Those that write to a file, or are asked to, look for themselves.
fn answers(session: &Session, command: &Command) -> bool {
    match command {
        Command::Sign { .. }
        | Command::Encrypt { .. }
        | Command::Decrypt { .. }
        | Command::ReadsFor {
            command: ReadsForCommand::Export { .. },
        } => session.json,
        Command::Verify { .. } => false,
        _ => true,
    }
}

async fn dispatch(session: &Session, command: Command) -> Answer {
    if answers(session, &command) {
        output::check_stdout()?;
    }
    match command {
        Command::Tokens {
            backend,
            watch: true,
        } => tokens::watch(session, backend.as_deref()).await,
        Command::Tokens {
            backend,
            watch: false,
        } => in_time(session, tokens::run(session, backend.as_deref())).await,
        Command::Generate {
            name,
            backend,
            params,
            capabilities,
        } => enter::generate(session, &name, &backend, params, capabilities).await,
        Command::Connect {
            name,
            to,
            backend,
            capabilities,
        } => enter::connect(session, &name, &to, backend.as_deref(), capabilities).await,
        Command::Delete { name, yes } => delete::run(session, &name, yes).await,
        Command::Identities => identities::list(session),
        Command::Show {
            name,
            attestation_root,
        } => identities::show(session, &name, attestation_root.as_deref()),
        Command::Sign {
            name,
            file,
            format,
            namespace,
            output,
        } => {
            let wanted = sign::Wanted {
                format,
                namespace: &namespace,
                output: output.as_deref(),
            };
            sign::sign(session, &name, file.as_deref(), wanted).await
        }
        Command::Verify {
            name,
            signature,
            file,
            namespace,
            allowed_signers,
        } => {
            let claim = sign::Claim {
                name: &name,
                signature: &signature,
                file: file.as_deref(),
                namespace: &namespace,
                allowed_signers: allowed_signers.as_deref(),
            };
            sign::verify(session, &claim)
        }
        Command::Encrypt {
            name,
            file,
            also,
            reads_for,
            output,
        } => {
            let wanted = crypt::Wanted {
                names: std::iter::once(&name).chain(&also).map(|n| &**n).collect(),
                reads_for,
                output: output.as_deref(),
            };
            crypt::encrypt(session, file.as_deref(), wanted).await
        }
        Command::Decrypt { words, output } => {
            crypt::decrypt(session, &words, output.as_deref()).await
        }
        Command::Contact { command } => match command {
            ContactCommand::Add { name, file } => contact::add(session, &name, &file),
            ContactCommand::List => contact::list(session),
            ContactCommand::Remove { name } => contact::remove(session, &name),
        },
        Command::ReadsFor { command } => match command {
            ReadsForCommand::Grant { reader, by } => reads_for::grant(session, &reader, &by).await,
            ReadsForCommand::List { identity } => reads_for::list(session, identity.as_deref()),
            ReadsForCommand::Check { reader, identity } => {
                reads_for::check(session, &reader, &identity)
            }
            ReadsForCommand::Export { file } => reads_for::export(session, &file),
            ReadsForCommand::Import { file } => reads_for::import(session, &file).await,
        },
        Command::Doctor {
            forget_refused_pin: Some(token),
            ..
        } => in_time(session, doctor::pins::forget(session, &token)).await,
        Command::Doctor {
            repair,
            this_is_the_home,
            ..
        } => {
            if this_is_the_home {
                session.registry()?.claim_home()?;
            }
            match repair {
                true => doctor::run(session, true).await,
                false => in_time(session, doctor::run(session, false)).await,
            }
        }
    }
}
