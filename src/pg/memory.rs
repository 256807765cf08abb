//! The process' memory.

/// Memory that is freed stays with the process up to this size, in bytes.
const KEPT: libc::c_int = 64 * 1024 * 1024;

/// Has the allocator keep large blocks that are freed, to be used again: buffers
/// and values come and go all the time, and each fresh page costs a fault.
pub fn keep_freed_blocks() {
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, KEPT);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
    }
}
