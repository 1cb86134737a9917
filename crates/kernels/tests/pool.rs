//! The thread pool: every task once, whatever happens.

use lapidary_kernels::Pool;
use std::sync::atomic::{AtomicUsize, Ordering};

#[test]
fn every_task_runs_once_and_the_pool_survives_a_panic() {
    for threads in [1, 2, 5] {
        let pool = Pool::new(threads);
        for round in 0..200 {
            let counts: Vec<AtomicUsize> = (0..round % 37).map(|_| AtomicUsize::new(0)).collect();
            pool.run(counts.len(), &|i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
            if round == 100 {
                let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                    pool.run(8, &|i| assert_ne!(i, 5, "on purpose"));
                }));
                assert!(caught.is_err());
            }
        }
    }
}

#[test]
fn split_covers_the_range() {
    let pool = Pool::new(3);
    for (len, grain) in [(0, 1), (1, 1), (7, 3), (1000, 16), (5, 100)] {
        let hits: Vec<AtomicUsize> = (0..len).map(|_| AtomicUsize::new(0)).collect();
        pool.split(len, grain, &|r| {
            r.for_each(|i| {
                hits[i].fetch_add(1, Ordering::Relaxed);
            })
        });
        assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
    }
}

#[test]
fn an_idle_pool_sleeps_and_wakes() {
    let pool = Pool::new(2);
    for _ in 0..3 {
        std::thread::sleep(std::time::Duration::from_millis(5));
        let sum = AtomicUsize::new(0);
        pool.run(100, &|i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 4950);
    }
}
