//! Random numbers that can be repeated.

use std::hash::{BuildHasher, RandomState};

/// A small generator (xorshift64*): its quality matters little, that a failure can be repeated matters a lot.
pub struct Random {
    state: u64,
}

impl Random {
    /// Starts from `WEFT_SEED`, or from a fresh seed. Prints it: a failed test shows its output, a passed one none.
    pub fn new() -> Self {
        let seed = std::env::var("WEFT_SEED").ok().map_or_else(
            || RandomState::new().hash_one(std::process::id()),
            |text| text.parse().expect("WEFT_SEED is a number"),
        );
        #[expect(
            clippy::print_stdout,
            reason = "a test's output is kept by the test runner and shown on failure"
        )]
        {
            println!("repeat with WEFT_SEED={seed}");
        }
        Self { state: seed | 1 }
    }

    /// The next number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        (self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16) % limit
    }

    /// One of the items, of which there is at least one.
    pub fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        let index = self.below(items.len() as u64);
        &items[usize::try_from(index).expect("an index fits")]
    }
}

impl Default for Random {
    fn default() -> Self {
        Self::new()
    }
}
