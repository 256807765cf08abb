//! Memory of a worker: how much of it is on its way to the shards, and buffers
//! that are used again. A chunk counts until the last shard has sent it.
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

/// Buffers that are kept for the next chunk.
const SPARE: usize = 32;

/// The memory that one worker may use for rows on their way.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    limit: usize,
    chunk: usize,
    freed: Notify,
    spare: Mutex<Vec<Vec<u8>>>,
}

struct Chunk {
    data: Vec<u8>,
    budget: Arc<Budget>,
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.data.len(), Ordering::AcqRel);
        self.budget.recycle(std::mem::take(&mut self.data));
        self.budget.freed.notify_one();
    }
}

impl Budget {
    /// A budget of `limit` bytes, for chunks of about `chunk` bytes.
    pub(super) fn new(limit: usize, chunk: usize) -> Arc<Self> {
        Arc::new(Self {
            used: AtomicUsize::new(0),
            limit,
            chunk,
            freed: Notify::new(),
            spare: Mutex::new(Vec::new()),
        })
    }

    /// An empty buffer, a little larger than a chunk.
    pub(super) fn buffer(&self) -> Vec<u8> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).pop();
        spare.unwrap_or_else(|| Vec::with_capacity(self.chunk + self.chunk / 4))
    }

    fn recycle(&self, mut data: Vec<u8>) {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < SPARE && data.capacity() <= 2 * self.chunk {
            data.clear();
            spare.push(data);
        }
    }

    /// Bytes from which on a buffer is sent.
    pub(super) fn chunk(&self) -> usize {
        self.chunk
    }

    /// Books a full buffer. It is given back when the last clone is dropped.
    pub(super) fn book(self: &Arc<Self>, data: Vec<u8>) -> Bytes {
        self.used.fetch_add(data.len(), Ordering::AcqRel);
        Bytes::from_owner(Chunk { data, budget: Arc::clone(self) })
    }

    /// Whether more is on its way than may be.
    pub(super) fn is_exceeded(&self) -> bool {
        self.used.load(Ordering::Acquire) > self.limit
    }

    /// Waits until there is room again.
    pub(super) async fn room(&self) {
        while self.is_exceeded() {
            self.freed.notified().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_chunk_counts_once_until_its_last_clone_is_gone() {
        let budget = Budget::new(10, 8);
        let first = budget.book(vec![0; 11]);
        let second = first.clone();
        assert!(budget.is_exceeded());
        drop(first);
        assert!(budget.is_exceeded());
        drop(second);
        assert!(!budget.is_exceeded());
    }

    #[test]
    fn buffers_are_used_again() {
        let budget = Budget::new(100, 8);
        let mut buffer = budget.buffer();
        buffer.extend_from_slice(b"abc");
        let address = buffer.as_ptr();
        drop(budget.book(buffer));
        let again = budget.buffer();
        assert!(again.is_empty());
        assert_eq!(again.as_ptr(), address);
    }
}
