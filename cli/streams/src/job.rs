//! Job control: stops when the shell asks for it, and what it has signals ignored for.

/// Does what SIGTSTP does to a process that has no handler for it: stops it until it is told to
/// go on. For the use of such a handler, when it has tidied up.
///
/// Where nobody could tell it to go on, since its process group is orphaned (POSIX.1-2024, XSH
/// 2.4.3), the system lets it go on at once. SIGSTOP, which others send themselves instead,
/// stops it there, too, and for ever.
pub fn stop() {
    // SAFETY: all zeros is a `sigaction` without flags, whose action is `SIG_DFL`. Both
    // pointers are to values on this stack; nothing else is touched, and the handler that was
    // there is put back as it was.
    unsafe {
        let mut default: libc::sigaction = std::mem::zeroed();
        default.sa_sigaction = libc::SIG_DFL;
        libc::sigemptyset(&raw mut default.sa_mask);
        let mut before: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGTSTP, &raw const default, &raw mut before) == 0 {
            libc::raise(libc::SIGTSTP);
            libc::sigaction(libc::SIGTSTP, &raw const before, std::ptr::null_mut());
        }
    }
}

/// Whether the process was started to ignore this signal, or has decided to. Where that is not
/// known, it is.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: all zeros is a `sigaction`; the pointer is to this one, and nothing is changed.
    unsafe {
        let mut now: libc::sigaction = std::mem::zeroed();
        let asked = libc::sigaction(signal, std::ptr::null(), &raw mut now);
        asked != 0 || now.sa_sigaction == libc::SIG_IGN
    }
}
