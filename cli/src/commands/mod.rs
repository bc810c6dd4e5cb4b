//! The commands, one module for each group.

mod age_identity;
mod audit;
mod backup;
mod certificate;
mod completions;
mod config;
mod contact;
mod crypt;
mod delete;
mod doctor;
mod enter;
mod grant;
mod identities;
mod open;
mod reads_for;
mod recipients;
mod serve;
mod sign;
mod ssh;
mod status;
mod tokens;
mod unlock;

use claviger_token::Error;

use crate::args::{Args, Command, ConfigCommand, ContactCommand, DEFAULT_PARAMS, ReadsForCommand};
use crate::config::Config;
use crate::daemon_args::{AuditCommand, GrantCommand};
use crate::failure::Failure;
use crate::output;
use crate::session::Session;

/// What a command answers: the exit status where it did not fail.
pub(crate) type Answer = Result<u8, Failure>;

/// Success.
pub(crate) const FINE: u8 = 0;

/// Runs the command; the result is the exit status.
pub(crate) fn run(mut args: Args) -> Answer {
    let config = match &args.command {
        // They are asked for where a shell starts, or a package is made.
        Command::Completions { .. } | Command::ManPages { .. } => Config::default(),
        _ => Config::read()?,
    };
    let settings = config.shown(&args);
    config.apply(&mut args);
    let session = Session::new(&args, settings)?;
    if let Command::Serve { options } = &args.command {
        return serve::run(&session, options, config);
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .map_err(|e| Failure::io("the program cannot start", &e))?;
    let answer = runtime.block_on(dispatch(&session, args.command));
    // What still blocks on a device is not waited for, nor is who still asks a person.
    runtime.shutdown_background();
    #[cfg(unix)]
    session.interrupt.end_questions();
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
        | Command::Backup { .. }
        | Command::ReadsFor {
            command: ReadsForCommand::Export { .. },
            ..
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
            ..
        } => tokens::watch(session, backend.as_deref()).await,
        Command::Tokens {
            backend,
            watch: false,
            ..
        } => in_time(session, tokens::run(session, backend.as_deref())).await,
        Command::Generate {
            name,
            backend,
            params,
            capabilities,
            ..
        } => {
            let params = params.unwrap_or(DEFAULT_PARAMS);
            enter::generate(session, &name, &backend, params, capabilities).await
        }
        Command::Connect {
            name,
            to,
            backend,
            capabilities,
            ..
        } => enter::connect(session, &name, &to, backend.as_deref(), capabilities).await,
        Command::Delete { name, yes, .. } => delete::run(session, &name, yes).await,
        Command::Identities => identities::list(session),
        Command::Show {
            name,
            attestation_root,
        } => identities::show(session, &name, attestation_root.as_deref()),
        Command::AgeIdentity { name } => age_identity::print(session, &name),
        Command::Sign {
            name,
            file,
            format,
            namespace,
            output,
            ..
        } => {
            let options = sign::SignOptions {
                format: format.unwrap_or_default(),
                namespace: &namespace,
                output: output.as_deref(),
            };
            sign::sign(session, &name, file.as_deref(), options).await
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
            via,
            via_any,
            depth,
            output,
        } => {
            let options = crypt::EncryptOptions {
                whom: recipients::Whom {
                    names: std::iter::once(&name).chain(&also).map(|n| &**n).collect(),
                    reads_for,
                    via: &via,
                    via_any,
                    depth,
                },
                output: output.as_deref(),
            };
            crypt::encrypt(session, file.as_deref(), options).await
        }
        Command::Decrypt { words, output, .. } => {
            crypt::decrypt(session, &words, output.as_deref()).await
        }
        Command::Contact { command } => match command {
            ContactCommand::Add { name, file } => contact::add(session, &name, &file),
            ContactCommand::List => contact::list(session),
            ContactCommand::Rename { old, new } => contact::rename(session, &old, &new),
            ContactCommand::Remove { name } => contact::remove(session, &name),
        },
        Command::ReadsFor { command, .. } => match command {
            ReadsForCommand::Grant {
                reader, by, until, ..
            } => reads_for::grant(session, &reader, &by, until).await,
            ReadsForCommand::Revoke { reader, by, .. } => {
                reads_for::revoke(session, &reader, &by).await
            }
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
            find_accounts,
            backend,
            ..
        } if !find_accounts.is_empty() => {
            doctor::accounts::find(session, &find_accounts, &backend).await
        }
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
        // It has a runtime of its own, and began above.
        Command::Serve { .. } => Ok(FINE),
        Command::Status => status::run(session),
        Command::Unlock { token, time, .. } => unlock::unlock(session, &token, time),
        Command::Lock { token } => unlock::lock(session, token.as_deref()),
        Command::Grant { command } => match command {
            GrantCommand::Add(new) => grant::add(session, new),
            GrantCommand::List => grant::list(session),
            GrantCommand::Remove { id } => grant::remove(session, id),
        },
        Command::AgentEnv => ssh::agent_env(session),
        Command::SshKey { name } => ssh::ssh_key(session, &name),
        Command::AllowedSigners { names, principal } => {
            ssh::allowed_signers(session, &names, principal.as_deref())
        }
        Command::Audit {
            command: AuditCommand::Verify { files, sealed_by },
        } => audit::verify(session, &files, sealed_by.as_deref()),
        Command::Certificate { command, .. } => certificate::run(session, command).await,
        Command::Backup { file } => backup::backup(session, &file),
        Command::Restore { file } => backup::restore(session, &file),
        Command::Config {
            command: ConfigCommand::Show,
        } => config::show(session),
        Command::Completions { shell } => completions::write(shell),
        Command::ManPages { folder } => completions::write_man_pages(&folder),
    }
}
