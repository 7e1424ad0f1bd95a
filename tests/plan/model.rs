//! Models as they are planned: rewritten by the tool, lowered and packed in memory, run both ways.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::AtomicBool;

use hlrc::exec::{Engine, Options as ExecOptions, Precision, Rows, State};
use hlrc::ir::Module;
use hlrc::plan::interpret::Machine;
use hlrc::plan::lower::{Options, lower};
use hlrc::plan::pack::{Sink, pack};
use hlrc::plan::verify::verify;
use hlrc::plan::{Plan, Target};
use hlrc::store::Reader;
use hlrc::weights::FileCache;

pub(crate) const STORIES: &str = "tests/fixtures/stories260K";

/// A family's fixture.
pub(crate) fn family(name: &str) -> PathBuf {
    Path::new("tests/fixtures/families").join(name)
}

/// A model behind a pipeline, in a folder that lives as long as this.
pub(crate) struct Model {
    pub(crate) module: Module,
    files: FileCache,
    _folder: Option<tempfile::TempDir>,
}

impl Model {
    /// Rewrites a model with the tool; an empty pipeline leaves it.
    pub(crate) fn new(path: &Path, pipeline: &str) -> Self {
        let (path, folder) = match pipeline {
            "" => (path.to_path_buf(), None),
            _ => {
                let folder = tempfile::tempdir().expect("a folder");
                let out = folder.path().join("out.hlrc");
                let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
                command
                    .arg("-q")
                    .arg(path)
                    .args(["-p", pipeline, "-o"])
                    .arg(&out);
                super::common::succeed(&mut command);
                (out, Some(folder))
            }
        };
        let module = hlrc::cli::load::executable(&path)
            .unwrap_or_else(|e| panic!("{e}"))
            .module;
        Self {
            module,
            files: FileCache::new(),
            _folder: folder,
        }
    }

    /// The same model, to be changed; its files stay where the first one keeps them.
    pub(crate) fn again(model: &Self) -> Self {
        Self {
            module: model.module.clone(),
            files: FileCache::new(),
            _folder: None,
        }
    }

    pub(crate) fn engine(&self, precision: Precision) -> Engine {
        let options = ExecOptions {
            threads: 2,
            precision,
            ..ExecOptions::default()
        };
        Engine::new(&self.module, &self.files, &options).unwrap_or_else(|e| panic!("{e}"))
    }

    /// The plan and its packed weights.
    pub(crate) fn plan(&self, options: &Options) -> (Plan, Vec<u8>) {
        let lowered = lower(&self.module, options).unwrap_or_else(|e| panic!("{e}"));
        verify(&lowered.plan).unwrap_or_else(|e| panic!("{e}"));
        let mut sink = Sink::Memory(Vec::new());
        let (reader, stop) = (Reader::new(&self.files), AtomicBool::new(false));
        let plan = pack(
            lowered,
            &self.module,
            &reader,
            &mut sink,
            &stop,
            &mut |_, _| {},
        );
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        verify(&plan).unwrap_or_else(|e| panic!("{e}"));
        let Sink::Memory(blob) = sink else {
            panic!("packed into memory");
        };
        (plan, blob)
    }
}

/// The usual options, with a short context.
pub(crate) fn options(context: u32) -> Options {
    let target = Target::named("sm_89").unwrap_or_else(|e| panic!("{e}"));
    Options {
        context: Some(context),
        chunk: 32,
        ..Options::new(target)
    }
}

/// Logits `[tokens, vocabulary]` of tokens appended to a state.
pub(crate) fn forward(engine: &Engine, state: &mut State, tokens: &[u32]) -> Vec<f32> {
    let mut all = Vec::new();
    let done = engine.forward(state, tokens, Rows::All, &mut |_, logits| {
        all.extend_from_slice(logits);
        ControlFlow::Continue(())
    });
    done.unwrap_or_else(|e| panic!("{e}"));
    all
}

/// A plan's memory, with greedy sampling.
pub(crate) fn machine<'a>(plan: &'a Plan, blob: &'a [u8]) -> Machine<'a> {
    let mut machine = Machine::new(plan, blob).unwrap_or_else(|e| panic!("{e}"));
    let batch = plan.shape.batch as usize;
    let set = |done: Result<(), hlrc::plan::PlanError>| done.unwrap_or_else(|e| panic!("{e}"));
    set(machine.set_floats("sampling", &vec![0.0; batch * 3]));
    set(machine.set_ints("sampling_top_k", &vec![0; batch]));
    if plan.kv.page.is_some() {
        let pages = plan
            .persistent
            .iter()
            .find(|b| b.name == "pages")
            .expect("a table");
        let count = pages.dims.iter().product::<u64>() as i32;
        // Any order will do; this one is not the plain one.
        let order: Vec<i32> = (0..count).rev().collect();
        set(machine.set_ints("pages", &order));
    }
    machine
}

/// Logits of each sequence after it gets a token.
pub(crate) fn decode(
    machine: &mut Machine<'_>,
    plan: &Plan,
    tokens: &[u32],
    position: usize,
) -> Vec<Vec<f32>> {
    let ints: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let run = |done: Result<(), hlrc::plan::PlanError>| done.unwrap_or_else(|e| panic!("{e}"));
    run(machine.set_ints("tokens", &ints));
    run(machine.set_ints("positions", &vec![position as i32; tokens.len()]));
    run(machine.run("decode"));
    logits(machine, plan)
}

/// Logits of the last of a prompt's tokens.
pub(crate) fn prefill(
    machine: &mut Machine<'_>,
    plan: &Plan,
    tokens: &[u32],
    past: usize,
) -> Vec<f32> {
    let run = |done: Result<(), hlrc::plan::PlanError>| done.unwrap_or_else(|e| panic!("{e}"));
    let ints: Vec<i32> = tokens.iter().map(|&t| t as i32).collect();
    let places: Vec<i32> = (past..past + tokens.len()).map(|p| p as i32).collect();
    run(machine.set_ints("prompt", &ints));
    run(machine.set_ints("prompt_positions", &places));
    run(machine.set_ints("scalars", &[tokens.len() as i32, past as i32, 0]));
    run(machine.run("prefill"));
    logits(machine, plan).swap_remove(0)
}

fn logits(machine: &Machine<'_>, plan: &Plan) -> Vec<Vec<f32>> {
    let all = machine.floats("logits").unwrap_or_else(|e| panic!("{e}"));
    let (batch, vocabulary) = (plan.shape.batch as usize, plan.shape.vocabulary as usize);
    let rows = all.chunks(all.len() / batch);
    rows.map(|row| row[..vocabulary].to_vec()).collect()
}

/// The relative error of a vector; infinite where one is no number.
pub(crate) fn error(have: &[f32], want: &[f32]) -> f64 {
    assert_eq!(have.len(), want.len());
    let (mut off, mut size) = (0.0f64, 0.0f64);
    for (have, want) in have.iter().zip(want) {
        let difference = f64::from(*have) - f64::from(*want);
        if !difference.is_finite() {
            return f64::INFINITY;
        }
        off += difference * difference;
        size += f64::from(*want) * f64::from(*want);
    }
    (off / size).sqrt()
}
