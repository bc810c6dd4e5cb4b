//! What `--help` says below the options.

use crate::drivers;

/// How backends are written, by the drivers that this program has.
pub(crate) fn backends() -> String {
    let examples = || drivers::ABOUT.iter().flat_map(|about| about.examples);
    let width = examples().map(|example| example.backend.len()).max();
    let mut text = "Backends (quote them in a shell):\n".to_owned();
    for about in drivers::ABOUT {
        text.push_str(&format!("  {}\n", about.syntax));
    }
    text.push_str("\nSuch as:\n");
    for example in examples() {
        text.push_str(&format!(
            "  {:width$}  {}\n",
            example.backend,
            example.names,
            width = width.unwrap_or_default()
        ));
    }
    text.push_str("`claviger tokens` shows the backend of every token.");
    text
}

/// Examples, and how backends are written.
pub(crate) fn with_backends(examples: &str) -> String {
    format!("{examples}\n\n{}", backends())
}

pub(crate) const EXAMPLES: &str = "\
Options of tokens, such as --pin-source, are shown with the commands that use them:
`claviger sign --help`. They may stand before the command, too.

Examples:
  claviger tokens
  claviger generate alice --backend 'pkcs11:token=bench'
  claviger sign alice letter.txt --format sshsig -o letter.txt.sig
  claviger encrypt alice letter.txt -o letter.age
  claviger decrypt alice letter.age

Exit status: 0 success, 1 failure (of verify: the signature is not valid), 2 wrong usage,
3 verify cannot judge the signature,
128 and the number of the signal that ended the command: 130 after Ctrl-C.
With --json a failure is one line on standard error: {\"error\":{\"code\":…,\"message\":…,\"hint\":…}}.
CLAVIGER_LOG=debug logs to standard error; a PIN is never logged.";

pub(crate) const GENERATE: &str = "\
Examples:
  claviger generate alice --backend 'pkcs11:token=bench'
  claviger generate build-bot --params ed25519 --capabilities commit \\
      --backend 'pkcs11:token=ci?module-path=/usr/lib/softhsm/libsofthsm2.so' \\
      --pin-source env:CI_PIN";

pub(crate) const CONNECT: &str = "\
Examples:
  claviger connect bob --to alice --capabilities decrypt
  claviger connect old-key --to SHA256:xOYj... --backend 'pkcs11:token=bench'
  claviger connect alice --to SHA256:xOYj...,SHA256:Kq0d...    # both keys of a lost identity

An adopted key is never destroyed: `claviger delete` only releases it.";

pub(crate) const SIGN: &str = "\
Messages may be longer than memory, with two exceptions: raw signatures of Ed25519 and BLS keys,
which sign the message itself, and tokens that hash by themselves (tpm2-pkcs11 with RSA).

A file that a key signs for another purpose is refused: a statement of who reads for whom, or the
data of an SSH signature.

Examples:
  claviger sign alice letter.txt --format der -o letter.sig
      openssl dgst -sha256 -verify alice.pem -signature letter.sig letter.txt
  claviger sign alice letter.txt --format sshsig -o letter.txt.sig
      ssh-keygen -Y verify -f allowed_signers -I alice -n file -s letter.txt.sig < letter.txt";

pub(crate) const AGE_IDENTITY: &str = "\
The output is an identity file for `age -i`, `rage -i` and others, which start age-plugin-claviger.
Nothing in it is secret: files are decrypted by the daemon, with the key on the token.

Examples:
  claviger age-identity alice > alice.txt
  age -e -i alice.txt -o letter.age letter.txt
  age -d -i alice.txt letter.age";

pub(crate) const VERIFY: &str = "\
A signature does not identify what it signs. Anybody can make a second valid ECDSA signature from
a first one. An SSH signature stays valid if its lines are broken differently or text follows it.
Raw Ed25519 and BLS signatures need as much memory as the message; all other forms take messages
of any length.

Examples:
  claviger verify alice --signature letter.sig letter.txt
  claviger verify alice@example.org --allowed-signers ~/.ssh/allowed_signers \\
      --signature letter.txt.sig letter.txt";

pub(crate) const ENCRYPT: &str = "\
The result is an age file. Any age program can make one for the recipient that
`claviger show NAME` prints.

Examples:
  claviger encrypt alice letter.txt -o letter.age
  claviger encrypt alice --also bob letter.txt -o letter.age
  claviger encrypt yk --reads-for letter.txt -o letter.age          # and to whom yk lets read
  claviger encrypt yk --reads-for --depth 1 letter.txt -o letter.age
  tar c folder | claviger encrypt alice > folder.tar.age";

pub(crate) const DECRYPT: &str = "\
Without NAME, the command finds an identity that can open the file. It tries keys first that need
neither touch nor approval. If keys on several tokens could open the file, a single --pin-source is
not used; give NAME.

A single word is the name of an identity, if there is one of that name; otherwise a file.

Examples:
  claviger decrypt letter.age
  claviger decrypt alice letter.age -o letter.txt
  claviger decrypt < letter.age";

pub(crate) const CONTACT: &str = "\
Examples:
  claviger show alice --json > alice.json       # on Alice's machine
  claviger contact add alice alice.json         # here
  claviger encrypt alice letter.txt -o letter.age
  claviger verify alice --signature letter.sig letter.txt";

pub(crate) const CERTIFICATE: &str = "\
A certificate belongs to the identity's signing key. It is kept in the registry and removed with the
key. `claviger doctor` says when it expires.

Examples:
  claviger certificate request alice --subject CN=alice,O=Example \\
      --san alice.example -o alice.csr
  claviger certificate import alice chain.pem   # what the authority made of it
  claviger certificate show alice
  claviger certificate self-signed alice --subject CN=alice --san localhost --days 30";

pub(crate) const READS_FOR: &str = "\
If A reads for B, the holder of A's key can decrypt what is encrypted to B. B grants this with its
signing key, and the evidence is kept. A grant is about keys: an identity that is made anew inherits
none. Grants are transitive: whoever reads for A reads for B, too. B can revoke a grant or limit it.

Examples:
  claviger reads-for grant safe --by yk
  claviger encrypt yk --reads-for letter.txt -o letter.age    # yk or safe opens it
  claviger reads-for check safe yk
  claviger reads-for export evidence.json       # and import it on another machine
  claviger reads-for grant deputy --by yk --until 2027-01-31
  claviger reads-for revoke safe --by yk";

pub(crate) const SERVE: &str = "\
Commands with the same home use the daemon by themselves: `claviger sign`, `decrypt`, `generate`,
`connect`, `delete` and `tokens`. An option of tokens that the daemon does not know, such as
--last-try, has the command work without it; so does --no-daemon.

Your own daemon serves you alone. SIGTERM ends it after the requests that it has begun; SIGHUP has it
read its configuration again and open its audit file anew.

Examples:
  claviger serve
  systemctl --user enable --now claviger.socket     # starts it when it is needed";

pub(crate) const UNLOCK: &str = "\
Examples:
  claviger unlock 'pkcs11:token=bench' --for 8h
  claviger unlock 5b1f2c9e7d3a4086 --pin-source file:/run/secrets/pin";

pub(crate) const GRANT: &str = "\
A daemon that serves a whole system grants nothing until you add a grant. Your own daemon serves you
alone and lets you do everything. Its socket for SSH is called ssh. Once a grant names that socket, SSH
has those keys only, for what is granted.

Examples:
  claviger --daemon /run/claviger/api.sock grant add --uid 1001 --identity build-bot \\
      --may sign --purpose sshsig:file
  claviger grant add --uid 1000 --socket ssh --identity alice --may sign --purpose ssh \\
      --host SHA256:rMfMGhjFyOWFY6dGJVLHEWD2vVUXvbJbNUlgdBbtGTA
  claviger --daemon /run/claviger/api.sock grant list
  claviger --daemon /run/claviger/api.sock grant remove 3";

pub(crate) const AGENT_ENV: &str = "\
Examples:
  eval \"$(claviger agent-env)\"
  ssh-add -l";

pub(crate) const SSH_KEY: &str = "\
Examples:
  claviger ssh-key alice >> ~/.ssh/authorized_keys
  git config gpg.format ssh
  git config gpg.ssh.defaultKeyCommand 'claviger ssh-key alice'";

pub(crate) const ALLOWED_SIGNERS: &str = "\
Examples:
  claviger allowed-signers alice --principal alice@example.org > allowed_signers
  git config gpg.ssh.allowedSignersFile \"$PWD/allowed_signers\"
  git verify-commit HEAD";

pub(crate) const AUDIT: &str = "\
Examples:
  claviger audit verify ~/.local/state/claviger/audit.jsonl";

pub(crate) const BACKUP: &str = "\
A backup holds names, public keys, contacts, evidence and where keys are. Of rejected PINs it holds
slow hashes. It holds no private key and no PIN.

Examples:
  claviger backup /media/usb/claviger.backup
  claviger restore /media/usb/claviger.backup";

pub(crate) const RESTORE: &str = "\
The present registry is moved aside, even if it is damaged. Nothing is changed if the backup is
damaged, or if another process has the registry open.

The restored home counts as a copy: abandoned intents are not resolved in it before
`claviger doctor --this-is-the-home`. Keys that were made after the backup are still on their
tokens: `claviger doctor` lists them, `claviger connect` adopts them.

Examples:
  claviger restore /media/usb/claviger.backup
  claviger doctor";

pub(crate) const CONFIG: &str = "\
The file is ~/.config/claviger/config.toml, or the one that CLAVIGER_CONFIG names. If
CLAVIGER_CONFIG is empty, no file is read. The command line and CLAVIGER_HOME take precedence.
Every setting is optional:
  home = \"/srv/claviger\"
  pin-source = \"file:/run/secrets/pin\"      # or env:VAR, prompt, pinentry
  management-key = \"env:PIV_KEY\"
  params = \"ed25519\"                        # of generate
  format = \"sshsig\"                         # of sign
  [backends]
  bench = \"pkcs11:token=bench\"              # claviger generate alice --backend bench";

pub(crate) const COMPLETIONS: &str = "\
Examples:
  claviger completions bash > ~/.local/share/bash-completion/completions/claviger
  claviger completions zsh > ~/.zfunc/_claviger
  claviger completions fish > ~/.config/fish/completions/claviger.fish";
