//! What the emulation must notice, and that it notices nothing in a correct kernel.

use crate::data::Random;
use crate::emulate::{Kernel, Launch, Schedule};
use std::path::Path;

/// A kernel in which one thing at a time can be wrong (`MISTAKE`).
const SOURCE: &str = r#"
#include "common/mma.cuh"
#include "common/reduce.cuh"
extern "C" __global__ void probe(const float* __restrict__ x, float* y, float* sums, unsigned* counter, int n) {
    __shared__ float near[64];
    __shared__ float scratch[32];
    __shared__ __align__(16) float copied[256];
    HLRC_DYNAMIC_SHARED(dynamic);
    float* mine = (float*)dynamic;
    const int tid = (int)threadIdx.x, i = (int)(blockIdx.x * 64) + tid;
    near[tid] = i < n + (MISTAKE == 1 ? 64 : 0) ? x[i] : 0.0f;
    if (MISTAKE != 2) __syncthreads();
    float v = near[63 - tid];
    if (MISTAKE == 3 && tid < 32) __syncthreads();
    mine[tid] = v;
    if (MISTAKE != 4) __syncwarp();
    v = mine[tid ^ 1];
    if (MISTAKE == 5 && tid == 3) v = __shfl_xor_sync(0x0000ffffu, v, 1);
    else if (MISTAKE == 6 && tid % 32 == 7) return;
    async_copy16(copied + 4 * tid, x);
    async_commit();
    if (MISTAKE != 7) async_wait<0>();
    v += copied[4 * tid] - x[0];
    if (MISTAKE == 8) *(float4*)(mine + 1 + tid / 64) = make_float4(v, v, v, v);
    const float sum = block_sum(v, scratch);
    if (MISTAKE == 9 || tid == 0) sums[blockIdx.x] = sum;
    if (MISTAKE == 10 && tid == 0) ((float*)x)[0] = 1.0f;
    if (tid == 0) {
        if (MISTAKE == 11) atomicAdd(counter, 1u);
        else add_release(counter, 1u);
    }
    if (blockIdx.x == 0) {
        if (tid == 0 && MISTAKE != 12) while (load_acquire(counter) < gridDim.x + (MISTAKE == 13)) {}
        __syncthreads();
        float all = 0.0f;
        for (int b = tid; b < (int)gridDim.x; b += 64) all += sums[b];
        all = block_sum(all, scratch);
        if (tid == 0) y[MISTAKE == 14 ? 1 : 0] = all;
    }
}
HLRC_EMU_EXPORT(probe)
"#;

fn kernel(mistake: usize) -> Option<Kernel> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let source = folder.join(format!("probe-{mistake}.cu"));
    std::fs::write(&source, SOURCE).expect("written");
    Kernel::compile_source("probe", &source, &[format!("-DMISTAKE={mistake}")])
}

fn launch(x: &[f32]) -> Launch {
    Launch::new([5, 1, 1], 64)
        .shared(64 * 4)
        .resident(5)
        .input("x", x)
        .output::<f32>("y", 1)
        .output::<f32>("sums", 5)
        .in_out("counter", &[0u32])
        .ints(&[x.len()])
}

#[test]
fn a_correct_kernel_runs_under_every_schedule() {
    let Some(kernel) = kernel(0) else { return };
    let x = Random(60).normals(300, 1.0);
    let want: f64 = x.iter().map(|&v| f64::from(v)).sum();
    let schedules = (0..20)
        .map(Schedule::Random)
        .chain([Schedule::Forward, Schedule::Reverse]);
    for schedule in schedules {
        let outcome = kernel
            .run(&launch(&x), schedule)
            .unwrap_or_else(|e| panic!("{e}"));
        assert!((f64::from(outcome.get::<f32>("y")[0]) - want).abs() < 1e-4);
        let traffic = outcome.traffic("x");
        assert_eq!(traffic.loaded_unique, 1200);
        // Each of 320 threads: its own value (300 have one), 16 bytes and x[0].
        assert_eq!(traffic.loaded, 4 * 300 + 320 * (16 + 4));
        assert_eq!(
            (
                outcome.traffic("sums").stored,
                outcome.traffic("sums").stored_unique
            ),
            (20, 20)
        );
    }
}

#[test]
fn mistakes_are_named() {
    let x = Random(61).normals(300, 1.0);
    let mistakes = [
        (1, "bytes behind x"),
        (2, "race: it"),
        (3, "divergent barrier"),
        (4, "race: it"),
        (5, "divergent warp"),
        (6, "has ended"),
        (8, "misaligned access at "),
        (9, "race: it writes byte "),
        (10, "it writes to x, which is an input"),
        (11, "nothing that orders the two"),
        (13, "deadlock: 5 of 5 blocks"),
        (14, "bytes behind y"),
    ];
    for (mistake, message) in mistakes {
        let Some(kernel) = kernel(mistake) else {
            return;
        };
        for schedule in [Schedule::Forward, Schedule::Random(5)] {
            match kernel.run(&launch(&x), schedule) {
                Ok(_) => panic!("mistake {mistake} went unnoticed ({schedule:?})"),
                Err(e) => assert!(e.contains(message), "mistake {mistake}: {e}"),
            }
        }
    }
    // These give a wrong result or a race.
    for mistake in [7, 12] {
        let Some(kernel) = kernel(mistake) else {
            return;
        };
        if let Ok(outcome) = kernel.run(&launch(&x), Schedule::Forward) {
            assert!(outcome.get::<f32>("y")[0].is_nan(), "mistake {mistake}");
        }
    }
}

#[test]
fn a_grid_that_does_not_fit_is_a_deadlock() {
    let Some(kernel) = kernel(0) else { return };
    let x = Random(62).normals(300, 1.0);
    let outcome = kernel.run(&launch(&x).resident(1), Schedule::Forward);
    let message = outcome.err().expect("block 0 waits for the others");
    assert!(
        message.contains("deadlock: 1 of 5 blocks are resident"),
        "{message}"
    );
}

#[test]
fn a_kernel_that_needs_too_much_is_refused() {
    let Some(kernel) = kernel(0) else { return };
    let x = Random(63).normals(300, 1.0);
    let message = kernel
        .run(&launch(&x).shared(101_000), Schedule::Forward)
        .err()
        .expect("refused");
    assert!(
        message.contains("101000 of dynamic shared memory exceed 101376"),
        "{message}"
    );
}
