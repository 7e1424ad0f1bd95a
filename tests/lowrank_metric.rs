//! `lowrank` and `refine` with statistics, as passes, against the optimum by another route.

use std::sync::atomic::AtomicBool;

use hlrc::ir::Module;
use hlrc::ir::site::sites;
use hlrc::ir::text::parse;
use hlrc::pass::manager::{RunOptions, Schedule, trial};
use hlrc::pass::pipeline::Pipeline;
use hlrc::pass::{MomentSource, Moments};
use hlrc::store::Reader;
use hlrc::weights::FileCache;
use nalgebra::DMatrix;

/// Second moments of one width for every site.
#[derive(Debug)]
struct One(Vec<f32>, usize);

impl MomentSource for One {
    fn identity(&self) -> String {
        "test".to_string()
    }

    fn moments(&self, _: &str) -> Result<Option<Moments>, String> {
        let n = self.1;
        Ok(Some(Moments {
            diagonal: (0..n).map(|i| self.0[i * (n + 1)]).collect(),
            hessian: Some(self.0.clone()),
            tokens: 1000,
        }))
    }
}

/// Inputs of very different size; near ones go together.
fn moments(n: usize) -> One {
    let size = |i: usize| (-3.0 * ((i * 7 % n) as f64 / n as f64)).exp();
    let entry = |at: usize| {
        let (i, j) = (at / n, at % n);
        (0.8f64.powi(i.abs_diff(j) as i32) * size(i) * size(j)) as f32
    };
    One((0..n * n).map(entry).collect(), n)
}

fn module(rows: usize, cols: usize) -> Module {
    let text = format!(
        "hlir 1\nmodule \"m\" {{\n  weight @q.weight : f32[{rows},{cols}] = synthetic(seed=1, power=0.6, scale=0.02, outliers=0.0)\n  \
         graph @main(%x : f32[B,{cols}]) -> (%y) {{\n    %y = linear %x [{rows},{cols}] {{ dense(@q.weight) }} \
         name(\"q\") : f32[B,{rows}]\n  }}\n}}\n"
    );
    parse(&text).expect("a module")
}

/// Relative squared error of the outputs behind a pipeline.
fn error(module: &Module, pipeline: &str, moments: &One, threads: usize) -> f64 {
    let (cache, interrupt) = (FileCache::default(), AtomicBool::new(false));
    let options = RunOptions {
        moments: Some(moments),
        ..RunOptions::new(threads, &interrupt)
    };
    let pipeline = Pipeline::parse(pipeline).expect("a pipeline");
    let schedule = Schedule::new(&pipeline, &[], None).expect("a schedule");
    let site = &sites(module)[0];
    let reader = Reader::new(&cache);
    let done = trial(module, site, &schedule, &reader, &options).expect("a trial");
    done.expect("a matrix").error
}

#[test]
fn low_rank_is_the_best_of_its_rank_on_the_inputs() {
    for (rows, cols) in [(96, 64), (48, 160)] {
        let (module, moments) = (module(rows, cols), moments(cols));
        let cache = FileCache::default();
        let site = &sites(&module)[0];
        let matrix = site.matrix(&module).expect("a matrix");
        let weights = Reader::new(&cache).dense(&module, matrix).expect("weights");
        // Eigenvalues of W H Wᵀ: no whitening, no root, no decomposition of W.
        let wide = |at: f32| f64::from(at);
        let w = DMatrix::from_row_iterator(rows, cols, weights.iter().copied().map(wide));
        let h = DMatrix::from_row_iterator(cols, cols, moments.0.iter().copied().map(wide));
        let mut energies = (&w * h * w.transpose())
            .symmetric_eigenvalues()
            .as_slice()
            .to_vec();
        energies.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = energies.iter().sum();
        for rank in [1, 5, 20] {
            let best = energies.iter().skip(rank).sum::<f64>() / total;
            let of = |metric: &str| {
                let text = format!("lowrank{{rank={rank} factors=f32 damp=0 metric={metric}}}");
                error(&module, &text, &moments, 1)
            };
            let (found, by_weights) = (of("inputs"), of("weights"));
            assert!(
                (found - best).abs() < 1e-4 * best,
                "{rows}x{cols} rank {rank}: {found}, best {best}"
            );
            assert!(by_weights > 1.05 * found, "{by_weights} {found}");
        }
    }
}

#[test]
fn refining_lowers_the_error_on_the_inputs() {
    let (module, moments) = (module(96, 128), moments(128));
    for (front, back) in [
        ("lowrank{rank=8},int3{group=64 method=gptq}", ",refine"),
        (
            "int3{group=64 method=gptq},lowrank{rank=8}",
            ",refine{iters=8}",
        ),
        ("lowrank{rank=8},int3{group=64}", ",refine"),
        (
            "lowrank{rank=8},rotate,int3{group=64 method=gptq}",
            ",refine",
        ),
    ] {
        let plain = error(&module, front, &moments, 1);
        let text = format!("{front}{back}");
        let refined = error(&module, &text, &moments, 1);
        assert!(refined < 0.995 * plain, "{text}: {refined}, before {plain}");
        assert_eq!(refined, error(&module, &text, &moments, 2), "{text}");
    }
}

#[test]
fn outliers_by_the_inputs_leave_less() {
    let (module, moments) = (module(96, 128), moments(128));
    for quantizer in ["int3{group=64 method=gptq}", "int3{group=64}"] {
        let of = |metric: &str| {
            let text = format!("outlier{{density=2% metric={metric}}},{quantizer}");
            error(&module, &text, &moments, 1)
        };
        let (inputs, weights) = (of("inputs"), of("weights"));
        assert!(
            inputs < weights,
            "{quantizer}: {inputs}, by weights {weights}"
        );
    }
}
