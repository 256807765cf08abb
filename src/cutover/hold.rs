//! Whether a cutover of this process holds writers, or is about to: what can wait does.
use std::cell::Cell;
use std::time::Duration;

thread_local! {
    /// Cutovers that do; the process has one thread that calls the server.
    static HOLDS: Cell<u32> = const { Cell::new(0) };
}

/// How often those who wait look.
const LOOK: Duration = Duration::from_millis(20);

/// Keeps others waiting as long as it lives.
pub struct Hold(());

impl Hold {
    /// From now on.
    pub fn begin() -> Self {
        HOLDS.set(HOLDS.get() + 1);
        Self(())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        HOLDS.set(HOLDS.get() - 1);
    }
}

/// Returns once no cutover holds writers.
pub async fn released() {
    while HOLDS.get() > 0 {
        tokio::time::sleep(LOOK).await;
    }
}
