use std::sync::atomic::{AtomicU32, Ordering};

use super::Pool;

#[test]
fn every_part_runs_once() {
    for threads in [1, 2, 3, 8] {
        let pool = Pool::new(threads);
        for parts in [0, 1, 2, 7, 1000] {
            let counts: Vec<AtomicU32> = (0..parts).map(|_| AtomicU32::new(0)).collect();
            pool.run(parts, |i| {
                counts[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1));
        }
    }
}

#[test]
fn tiles_cover_the_matrix() {
    let pool = Pool::new(3);
    for (rows, width) in [(1, 1), (5, 7), (33, 65), (2, 0)] {
        let mut out = vec![0_u32; rows * width];
        pool.split(&mut out, width, (2, 16), |mut tile| {
            let cols = tile.cols();
            for r in tile.rows() {
                for (c, entry) in cols.clone().zip(tile.row_mut(r)) {
                    *entry += u32::try_from(r * 1000 + c).unwrap() + 1;
                }
            }
        });
        for (i, &entry) in out.iter().enumerate() {
            let expected = (i / width) * 1000 + i % width + 1;
            assert_eq!(entry as usize, expected);
        }
    }
}

#[test]
fn nested_jobs_run_inline() {
    let pool = Pool::new(2);
    let sum = AtomicU32::new(0);
    pool.run(4, |_| {
        pool.run(5, |_| {
            sum.fetch_add(1, Ordering::Relaxed);
        });
    });
    assert_eq!(sum.load(Ordering::Relaxed), 20);
}

#[test]
fn a_panic_comes_out_and_the_pool_lives_on() {
    let pool = Pool::new(2);
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.run(100, |i| assert!(i != 63, "part 63"));
    }));
    assert!(failed.is_err());
    let sum = AtomicU32::new(0);
    pool.run(10, |_| {
        sum.fetch_add(1, Ordering::Relaxed);
    });
    assert_eq!(sum.load(Ordering::Relaxed), 10);
}

#[test]
fn alone_is_on_this_thread() {
    let pool = Pool::new(3);
    let here = std::thread::current().id();
    let elsewhere = || {
        let count = AtomicU32::new(0);
        pool.run(2000, |_| {
            if std::thread::current().id() != here {
                count.fetch_add(1, Ordering::Relaxed);
            }
            std::hint::black_box((0..2000).sum::<u64>());
        });
        count.into_inner()
    };
    assert_eq!(pool.alone(true, elsewhere), 0);
    // It ends with the call, also where that panics, and one inside does not end the outer.
    let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        pool.alone(true, || panic!("inside"))
    }));
    assert!(failed.is_err());
    let nested = pool.alone(true, || {
        pool.alone(false, || ());
        elsewhere()
    });
    assert_eq!(nested, 0);
    assert!((0..1000).any(|_| pool.alone(false, elsewhere) > 0));
}
