//! The tests of the command, with a daemon that serves the home of every stage.
//!
//! Here are `main_job`, `certificates`, `encryption` (but for smartcards, and for one PIN on several tokens, which
//! `daemon` tries), `deletion` and `outputs`. Not here, since they are about a process that holds the token itself or about no token at all:
//!
//! | tests | why |
//! | --- | --- |
//! | `backup`, `damage`, `read_only`, `crash` | they replace, damage or protect the registry under the command: a daemon keeps it open |
//! | `one_shot`, `interruptions`, `memory` | they count or interrupt the device calls of the command's own process |
//! | `pinentry`, `terminal` | they are about prompts, which are the command's own either way |
//! | `ledger`, `piv`, `chaos` | they have stages of their own |
//! | `configuration`, `contacts`, `help`, `set_up`, `verify` | they use no token |
//! | `bad_input`, `failures` | `daemon::sameness` compares what fails with a daemon and without |
//! | `evidence` | grants and revocations are signed by the command itself, also beside a daemon |

#![allow(
    clippy::duplicate_mod,
    reason = "each of these programs has its own copy of the stage"
)]

#[path = "../certificates.rs"]
mod certificates;
#[path = "../deletion.rs"]
mod deletion;
#[path = "../encryption.rs"]
mod encryption;
#[path = "../main_job.rs"]
mod main_job;
#[path = "../outputs.rs"]
mod outputs;
