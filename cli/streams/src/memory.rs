//! How the C library hands out memory.

/// Has all threads take their memory from one place. To be called before there are any.
///
/// Otherwise glibc gives each thread a place of its own (mallopt(3), `M_ARENA_MAX`), which grows page
/// by page with a system call for each. Few of the command's threads live longer than a
/// millisecond, and hardly two of them take memory at the same time. Other C libraries do nothing
/// here.
pub fn share_memory() {
    // SAFETY: it takes two numbers and changes how memory that is asked for later is found. What
    // it answers says whether it did.
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}
