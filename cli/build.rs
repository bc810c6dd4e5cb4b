//! Writes the table of characters that look like others, for `src/names.rs`.
//!
//! The table of the crate `unicode-security` has two pointers for each character: 160 KB that the
//! system's loader has to write to whenever a program starts that has it, also where nobody asks
//! how a name looks. Here the same is said without any.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

use unicode_normalization::UnicodeNormalization;
use unicode_security::confusable_detection::skeleton;

/// Where there are characters that look like others, or like nothing: further planes have none.
/// A test compares them all.
const PLANES: [std::ops::RangeInclusive<char>; 2] = ['\0'..='\u{3ffff}', '\u{e0000}'..='\u{e0fff}'];

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    let (mut chars, mut ends, mut looks) = (String::new(), String::new(), String::new());
    let mut count = 0;
    for one in PLANES.into_iter().flatten() {
        // What is composed is taken apart before it is looked up.
        let is_whole = [one].into_iter().nfd().eq([one]);
        let look: String = skeleton(one.encode_utf8(&mut [0; 4])).collect();
        if is_whole && !look.chars().eq([one]) {
            looks.push_str(&look);
            let end = u16::try_from(looks.len()).map_err(io::Error::other)?;
            // Nothing is written to a string without success.
            let _ = write!(chars, "{one:?},");
            let _ = write!(ends, "{end},");
            count += 1;
        }
    }
    let table = format!(
        "static CHARS: [char; {count}] = [{chars}];\n\
         static ENDS: [u16; {count}] = [{ends}];\n\
         static LOOKS: &str = {looks:?};\n"
    );
    let folder = env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?;
    fs::write(Path::new(&folder).join("looks.rs"), table)
}
