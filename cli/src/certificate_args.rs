//! The command line of `certificate`.

use std::path::PathBuf;

use clap::{Args, Subcommand, value_parser};

use crate::options::TokenOptions;

// A command on certificates.
#[derive(Subcommand)]
pub(crate) enum CertificateCommand {
    /// Make a request for a certificate (PKCS#10), signed by the identity's key
    Request {
        #[command(flatten)]
        names: Names,
        /// Use the key for TLS alone: let this user have digests signed through the daemon
        ///
        /// Programs that use the PKCS#11 module for TLS hand in digests. Whoever may have digests
        /// signed can obtain any signature of the key, so use the key for nothing else.
        #[arg(long)]
        tls_only: bool,
        /// Write the request to this file; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Make a certificate that the identity's key signs itself, and keep it
    SelfSigned {
        #[command(flatten)]
        names: Names,
        /// Make it valid for this many days from now
        #[arg(
            long,
            value_name = "N",
            default_value_t = 365,
            value_parser = value_parser!(u32).range(1..=36_500)
        )]
        days: u32,
        /// Write the certificate to this file; - is standard output
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        #[command(flatten)]
        access: TokenOptions,
    },
    /// Keep a certificate of the identity's signing key, and those that issued it
    ///
    /// An earlier certificate is replaced. The signatures of the issuers are not checked.
    Import {
        /// The identity
        name: String,
        /// Certificates in PEM in any order, or one in DER; - is standard input
        file: PathBuf,
    },
    /// Show the certificate of an identity, and those that issued it, as PEM
    Show {
        /// The identity
        name: String,
    },
}

// Whom a certificate names.
#[derive(Args)]
pub(crate) struct Names {
    /// The identity
    pub(crate) name: String,
    /// Name this subject, such as CN=alice,O=Example (RFC 4514)
    #[arg(long, value_name = "SUBJECT")]
    pub(crate) subject: String,
    /// Name this host, IP address, mailbox or URI, too; may be given several times
    ///
    /// What it is may stand before it: DNS:, IP:, email:, URI:.
    #[arg(long, value_name = "NAME")]
    pub(crate) san: Vec<String>,
}
