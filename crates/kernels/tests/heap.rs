//! Runs of floats: aligned, apart, and joined when they go.

use lapidary_kernels::{Heap, Run};
use std::sync::Arc;

/// Values of a first region.
const REGION: usize = 8 << 20;

fn heap() -> Arc<Heap> {
    Arc::default()
}

#[test]
fn runs_join_when_they_go() {
    let heap = heap();
    let [a, b, c, d] = [100, 20, 0, 1000].map(|len| heap.take(len));
    assert_eq!([a.len(), b.len(), c.len(), d.len()], [100, 20, 0, 1000]);
    assert_eq!(heap.live(), 1120);
    assert!([&a, &b, &c, &d].iter().all(|run| (run.as_ptr() as usize).is_multiple_of(64)));
    let (first, second) = (a.as_ptr(), b.as_ptr());
    drop(b);
    assert_eq!(heap.take(32).as_ptr(), second, "the part that fits best");
    assert_ne!(heap.take(33).as_ptr(), second, "which is too small for this");
    // In either order the two become one place.
    drop(a);
    let both = heap.take(112 + 32);
    assert_eq!(both.as_ptr(), first);
    drop((both, c, d));
    assert_eq!(heap.live(), 0);
    assert_eq!(heap.take(REGION).as_ptr(), first, "the whole region is one place again");
}

#[test]
fn long_runs_get_regions_of_their_own() {
    let heap = heap();
    let [long, short] = [REGION + 1, 5].map(|len| heap.take(len));
    assert_eq!((long.len(), short.len()), (REGION + 1, 5));
    assert!(long.iter().all(|v| *v == 0.0));
    let first = long.as_ptr();
    drop(long);
    let mut again = heap.take(REGION + 1);
    assert_eq!(again.as_ptr(), first);
    again.fill(1.0);
    drop(again);
    assert!(heap.zeros(REGION + 1).iter().all(|v| *v == 0.0));
}

#[test]
fn copies_are_apart() {
    let mut a = heap().zeros(40);
    let b = a.clone();
    assert_eq!(a, b);
    a[39] = 1.0;
    assert_ne!(a, b);
}

/// Runs of random lengths come and go, on two threads; none ever touches another's values.
#[test]
fn runs_never_overlap() {
    let heap = heap();
    let churn = |seed: u64| {
        let mut state = seed;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        let mut runs: Vec<(f32, Run)> = Vec::new();
        for step in 0..3000 {
            if runs.len() > 40 || (!runs.is_empty() && random(3) == 0) {
                let (mark, run) = runs.swap_remove(random(runs.len() as u64) as usize);
                assert!(run.iter().all(|v| *v == mark), "step {step}");
            } else {
                let mut run = heap.take(random(3000) as usize);
                let mark = (seed * 10_000 + step) as f32;
                run.fill(mark);
                runs.push((mark, run));
            }
        }
        runs.iter().map(|(_, run)| run.len()).sum::<usize>()
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| churn(1));
        churn(2);
        other.join().expect("no assertion failed");
    });
    assert_eq!(heap.live(), 0);
    assert_eq!(heap.take(REGION).len(), REGION);
}
