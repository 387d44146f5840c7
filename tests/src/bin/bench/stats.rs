//! Medians, ranges and ratios.

use serde::Serialize;

/// Median with the smallest and the largest value.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
}

impl Spread {
    /// # Panics
    /// Without values.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (Some(&min), Some(&max)) = (values.first(), values.last()) else {
            panic!("nothing was measured");
        };
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Self { median, min, max }
    }
}

/// Two things measured one right after the other, so that what else the machine does hits both.
pub(crate) type Pairs<T> = Vec<(T, T)>;

/// Measures `runs` pairs.
pub(crate) fn interleave<T>(
    runs: usize,
    mut ours: impl FnMut(usize) -> T,
    mut theirs: impl FnMut(usize) -> T,
) -> Pairs<T> {
    (0..runs).map(|run| in_turn(run, || ours(run), || theirs(run))).collect()
}

/// Measures one pair. Each thing is first in every other pair: the first finds other caches.
pub(crate) fn in_turn<T>(run: usize, ours: impl FnOnce() -> T, theirs: impl FnOnce() -> T) -> (T, T) {
    if run.is_multiple_of(2) {
        let first = ours();
        (first, theirs())
    } else {
        let first = theirs();
        (ours(), first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_or_the_mean_of_the_two_middles() {
        assert!((Spread::of([3.0, 1.0, 2.0]).median - 2.0).abs() < f64::EPSILON);
        let even = Spread::of([4.0, 1.0, 2.0, 3.0]);
        assert!((even.median - 2.5).abs() < f64::EPSILON);
        assert!((even.min - 1.0).abs() < f64::EPSILON && (even.max - 4.0).abs() < f64::EPSILON);
    }

    #[test]
    fn interleaving_alternates_who_is_first() {
        let order = std::cell::RefCell::new(String::new());
        let pairs = interleave(4, |_| order.borrow_mut().push('a'), |_| order.borrow_mut().push('b'));
        assert_eq!(*order.borrow(), "abbaabba");
        assert_eq!(pairs.len(), 4);
    }
}
