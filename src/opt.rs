//! The main job: an imported module, a pipeline, an output.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::export::hlrc::{self, Contents, FolderError, Partial};
use crate::export::onnx::ExportError;
use crate::ir::text::{PrintOptions, print, print_with};
use crate::ir::{Module, Storage};
use crate::pass::manager::{self, Destination, Observer, Outcome, RunError, RunOptions, Schedule};
use crate::report::ModelReport;
use crate::store::{Reader, Sink, SinkError, rebase};
use crate::weights::writer::ShardInfo;
use crate::weights::{FileCache, HashQueue, WeightsError, WriterOptions};

/// What is worked on.
pub struct Input<'a> {
    /// The module.
    pub module: Module,
    /// Files that it came from, to be named and hashed.
    pub files: &'a [PathBuf],
    /// Tokenizer, configuration and the like, to be copied.
    pub sidecars: &'a [PathBuf],
    /// Pipelines that made it, when it is an output of an earlier run.
    pub pipelines: Vec<String>,
}

/// Where the result goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// A `.hlrc` folder.
    Folder(PathBuf),
    /// An ONNX file.
    Onnx(PathBuf, OnnxOptions),
    /// Text with its weights in a folder beside it: `x.hlir` and `x.weights`.
    Text(PathBuf),
    /// Text alone: new weights are shown by hash and not kept.
    Shown,
}

impl Output {
    /// What it is as far as memory is concerned.
    pub fn destination(&self) -> Destination {
        match self {
            Output::Folder(_) | Output::Text(_) => Destination::Folder,
            Output::Onnx(..) => Destination::Onnx,
            Output::Shown => Destination::Shown,
        }
    }
}

/// How ONNX spells what it has no op for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Standard blocked `DequantizeLinear` instead of `MatMulNBits`.
    pub qdq: bool,
    /// Give a decoder's keys and values as inputs and outputs.
    pub cache: bool,
    /// Replace files of external data that are there already.
    pub replace: bool,
}

/// A run of the main job.
pub struct Job<'a> {
    /// The checked pipeline.
    pub schedule: &'a Schedule,
    /// Its canonical text.
    pub pipeline: String,
    /// Where the result goes.
    pub output: Output,
    /// Bytes per weight file.
    pub shard_size: u64,
    /// Go on from an interrupted run.
    pub resume: bool,
    /// How passes run.
    pub run: RunOptions<'a>,
}

impl Job<'_> {
    fn run_passes(
        &self,
        module: &mut Module,
        reader: &Reader<'_>,
        sink: &mut Sink,
        observer: &dyn Observer,
    ) -> Result<Outcome, RunError> {
        manager::run(module, self.schedule, reader, sink, &self.run, observer)
    }
}

/// What a job has done.
pub struct Summary {
    /// The report.
    pub report: ModelReport,
    /// Remarks and totals of the passes.
    pub outcome: Outcome,
    /// Text, where the output is text that is shown.
    pub text: Option<String>,
    /// What the exporter had to say.
    pub notes: Vec<String>,
}

/// Why a job ended early.
#[derive(Debug, thiserror::Error)]
pub enum OptError {
    /// Passes.
    #[error(transparent)]
    Run(#[from] RunError),
    /// The output folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The store.
    #[error(transparent)]
    Sink(#[from] SinkError),
    /// Hashing the input.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// The ONNX file.
    #[error(transparent)]
    Export(#[from] ExportError),
}

/// What makes a run resumable by another: everything that its output depends on.
#[derive(Serialize)]
struct Fingerprint<'a> {
    version: &'a str,
    pipeline: &'a str,
    seed: u64,
    shard_size: u64,
    bisect: Option<u64>,
    calibration: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    plugins: Vec<String>,
    module: String,
    inputs: Vec<(String, u64, u128)>,
}

fn fingerprint(job: &Job<'_>, input: &Input<'_>) -> String {
    let stamp = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok();
        let modified = meta.as_ref().and_then(|m| m.modified().ok());
        let since = modified.and_then(|t| t.duration_since(std::time::UNIX_EPOCH).ok());
        let name = path.display().to_string();
        (
            name,
            meta.map_or(0, |m| m.len()),
            since.map_or(0, |d| d.as_nanos()),
        )
    };
    let text = print(&input.module);
    let whole = Fingerprint {
        version: env!("CARGO_PKG_VERSION"),
        pipeline: &job.pipeline,
        seed: job.run.seed,
        shard_size: job.shard_size,
        bisect: job.run.bisect_limit,
        calibration: job.run.moments.map(|m| m.identity()),
        plugins: job.schedule.plugins(),
        module: crate::weights::Digest::of(text.as_bytes()).to_hex(),
        inputs: input.files.iter().map(stamp).collect(),
    };
    let json = serde_json::to_vec(&whole).unwrap_or_default();
    crate::weights::Digest::of(&json).to_hex()
}

/// Runs a job.
///
/// # Errors
/// The first failure. Outputs appear whole or not at all; an interrupted folder or ONNX job leaves a
/// `.partial` folder that `resume` goes on from.
pub fn run(
    job: &Job<'_>,
    input: Input<'_>,
    cache: &FileCache,
    observer: &dyn Observer,
) -> Result<Summary, OptError> {
    let mut input = input;
    let raised = manager::raise(&mut input.module, job.schedule)?;
    if job.run.mem_limit.is_some() {
        // Before anything is read or written: kept, or refused.
        let destination = job.output.destination();
        manager::plan(&input.module, job.schedule, &job.run, destination)?;
    }
    let mut summary = match &job.output {
        Output::Shown => shown(job, input, cache, observer),
        Output::Folder(path) => folder(job, input, cache, observer, path),
        Output::Text(path) => text_file(job, input, cache, observer, path),
        Output::Onnx(path, options) => onnx(job, input, cache, observer, path, *options),
    }?;
    summary.outcome.remarks.splice(0..0, raised);
    Ok(summary)
}

fn shown(
    job: &Job<'_>,
    input: Input<'_>,
    cache: &FileCache,
    observer: &dyn Observer,
) -> Result<Summary, OptError> {
    let mut module = input.module;
    let source = module.clone();
    let reader = Reader::new(cache);
    let mut sink = Sink::hashes();
    let outcome = job.run_passes(&mut module, &reader, &mut sink, observer)?;
    let report = ModelReport::new(&source, &module, &outcome, &job.pipeline);
    let annotate = |at| report.annotation(&module, at);
    let options = PrintOptions {
        annotate: Some(&annotate),
        elide_hashes: false,
    };
    let text = print_with(&module, &options);
    Ok(Summary {
        report,
        outcome,
        text: Some(text),
        notes: Vec::new(),
    })
}

/// The partial folder with its sink, new or resumed.
fn open_store(
    job: &Job<'_>,
    input: &Input<'_>,
    target: &Path,
) -> Result<(Partial, Sink), OptError> {
    let partial = Partial::open(target, job.resume)?;
    // A name, dtype, shape and offsets take some 200 bytes; a site makes up to eight tensors.
    let tensors = input.module.weights.len() as u64;
    let sites = input.module.walk().len() as u64;
    let options = WriterOptions {
        shard_size: job.shard_size,
        ..WriterOptions::default()
    }
    .reserve_for(tensors + 4 * sites.min(tensors), 200);
    let print = fingerprint(job, input);
    let sink = match partial.resumed {
        true => Sink::resume(&partial.path, options, &print)?,
        false => Sink::create(&partial.path, options, &print)?,
    };
    Ok((partial, sink))
}

fn folder(
    job: &Job<'_>,
    input: Input<'_>,
    cache: &FileCache,
    observer: &dyn Observer,
    target: &Path,
) -> Result<Summary, OptError> {
    let (partial, mut sink) = open_store(job, &input, target)?;
    let hashes = HashQueue::start(&partial.path)?;
    input.files.iter().for_each(|file| hashes.push(file));
    let mut module = input.module;
    let source = module.clone();
    let reader = Reader::new(cache);
    let outcome = job.run_passes(&mut module, &reader, &mut sink, observer)?;
    let shards = hlrc::settle(&mut module, &reader, sink, true, job.run.interrupt)?;
    module.base_dir = target.to_path_buf();
    let report = ModelReport::new(&source, &module, &outcome, &job.pipeline);
    let mut pipelines = input.pipelines;
    if !job.pipeline.is_empty() {
        pipelines.push(job.pipeline.clone());
    }
    let contents = Contents {
        pipelines,
        seed: job.run.seed,
        inputs: infos(input.files, hashes.finish()?),
        sidecars: input.sidecars,
        report: &report.to_json(),
    };
    hlrc::publish(partial, &module, &shards, contents)?;
    Ok(Summary {
        report,
        outcome,
        text: None,
        notes: Vec::new(),
    })
}

/// Names, sizes and hashes of files.
pub(crate) fn infos(files: &[PathBuf], hashes: Vec<crate::weights::Digest>) -> Vec<ShardInfo> {
    let info = |(path, digest): (&PathBuf, crate::weights::Digest)| ShardInfo {
        file: path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned()),
        bytes: std::fs::metadata(path).map_or(0, |m| m.len()),
        sha256: digest.to_hex(),
    };
    files.iter().zip(hashes).map(info).collect()
}

fn text_file(
    job: &Job<'_>,
    input: Input<'_>,
    cache: &FileCache,
    observer: &dyn Observer,
    target: &Path,
) -> Result<Summary, OptError> {
    let weights = target.with_extension("weights");
    let (partial, mut sink) = open_store(job, &input, &weights)?;
    let mut module = input.module;
    rebase(&mut module, target.parent().unwrap_or(Path::new(".")));
    let source = module.clone();
    let reader = Reader::new(cache);
    let outcome = job.run_passes(&mut module, &reader, &mut sink, observer)?;
    let shards = hlrc::settle(&mut module, &reader, sink, false, job.run.interrupt)?;
    let folder = weights
        .file_name()
        .map(|n| n.to_string_lossy().into_owned());
    prefix(&mut module, &shards.files, &folder.unwrap_or_default());
    match shards.tensors.is_empty() {
        true => partial.discard()?,
        false => partial.publish()?,
    }
    let report = ModelReport::new(&source, &module, &outcome, &job.pipeline);
    Ok(Summary {
        report,
        outcome,
        text: Some(print(&module)),
        notes: Vec::new(),
    })
}

/// Makes the paths of weights that stay where they are absolute, for text that goes elsewhere.
fn anchor(module: &mut Module) {
    let base = module.base_dir.clone();
    let weights = module.weights.iter_mut();
    for part in weights.flat_map(|w| w.storage.parts_mut()) {
        if let Storage::File { path, .. } = part {
            let joined = base.join(path.as_ref());
            if let Ok(absolute) = std::path::absolute(&joined) {
                *path = absolute.to_string_lossy().into();
            }
        }
    }
}

/// Puts the folder in front of the paths of new weights.
fn prefix(module: &mut Module, files: &[ShardInfo], folder: &str) {
    for weight in &mut module.weights {
        if let Storage::File { path, .. } = &mut weight.storage
            && files.iter().any(|f| f.file == **path)
        {
            *path = format!("{folder}/{path}").into();
        }
    }
}

fn onnx(
    job: &Job<'_>,
    input: Input<'_>,
    cache: &FileCache,
    observer: &dyn Observer,
    target: &Path,
    options: OnnxOptions,
) -> Result<Summary, OptError> {
    let (partial, mut sink) = open_store(job, &input, target)?;
    let mut module = input.module;
    let source = module.clone();
    let reader = Reader::new(cache);
    let outcome = job.run_passes(&mut module, &reader, &mut sink, observer)?;
    anchor(&mut module);
    let shards = hlrc::settle(&mut module, &reader, sink, false, job.run.interrupt)?;
    // Relative paths start at the source's folder, and this one is elsewhere.
    let scratch = std::path::absolute(&partial.path).unwrap_or_else(|_| partial.path.clone());
    let scratch = scratch.to_string_lossy().into_owned();
    prefix(&mut module, &shards.files, &scratch);
    let report = ModelReport::new(&source, &module, &outcome, &job.pipeline);
    let notes = write_onnx(&module, cache, target, options)?;
    partial.discard()?;
    Ok(Summary {
        report,
        outcome,
        text: None,
        notes,
    })
}

fn write_onnx(
    module: &Module,
    cache: &FileCache,
    target: &Path,
    options: OnnxOptions,
) -> Result<Vec<String>, OptError> {
    use crate::export::onnx::{Options, QuantForm, export};
    let quant = if options.qdq {
        QuantForm::Qdq
    } else {
        QuantForm::NBits
    };
    let options = Options {
        quant,
        cache: options.cache,
        replace: options.replace,
        ..Options::default()
    };
    Ok(export(module, cache, target, options)?.notes)
}
