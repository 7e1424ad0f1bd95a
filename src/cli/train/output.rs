//! The folder that a trained model goes to.

use super::Generation;
use super::args::TrainArgs;
use crate::cli::{Exit, Failure, errors, load, signal};
use crate::export::hlrc::{self, Contents, Partial};
use crate::ir::Module;
use crate::opt::{OptError, infos};
use crate::pass::manager::Outcome;
use crate::report::{ModelReport, read};
use crate::store::{JOURNAL, Reader, Sink};
use crate::train::History;
use crate::weights::writer::ShardInfo;
use crate::weights::{FileCache, HashQueue, WriterOptions};
use std::path::Path;

/// What is written, and where.
pub struct Output<'a> {
    /// The command.
    pub args: &'a TrainArgs,
    /// The folder that grows.
    pub partial: Partial,
    /// What the result depends on.
    pub print: &'a str,
    /// What training has seen.
    pub history: &'a History,
    /// The pipeline that it ends, if it ends one.
    pub generation: Option<Generation>,
}

/// Makes the partial folder, or opens that of an interrupted run.
///
/// # Errors
/// As [`Partial::open`].
pub fn open(args: &TrainArgs, print: &str) -> Result<Partial, Failure> {
    let partial = Partial::open(&args.output, args.resume);
    let partial = partial.map_err(|error| errors::job(&OptError::Folder(error)))?;
    if !partial.resumed {
        let written = partial.write(JOURNAL, format!("{{\"train\":\"{print}\"}}\n").as_bytes());
        written.map_err(|error| errors::job(&OptError::Folder(error)))?;
    }
    Ok(partial)
}

/// What a folder was made from: the sources of a pipeline whose last pass this is.
fn inputs(folder: &Path) -> Result<Vec<ShardInfo>, Failure> {
    let path = folder.join(hlrc::MANIFEST_FILE);
    let text = std::fs::read(&path).map_err(|error| Failure::read(&path, &error))?;
    let manifest: hlrc::Manifest = serde_json::from_slice(&text).map_err(|error| {
        Failure::new(
            Exit::Input,
            format!("{}: is no manifest: {error}", path.display()),
        )
    })?;
    Ok(manifest.inputs)
}

impl Output<'_> {
    /// Copies every weight, trained or not, and gives the folder its name.
    ///
    /// # Errors
    /// The folder can't be written.
    pub fn write(
        self,
        module: Module,
        loaded: &load::Loaded,
        files: &FileCache,
    ) -> Result<(), Failure> {
        let job = |error: OptError| errors::job(&error);
        let mut module = module;
        let before = module.clone();
        let options = WriterOptions::default().reserve_for(module.weights.len() as u64, 200);
        let sink = Sink::create(&self.partial.path, options, self.print);
        let sink = sink.map_err(|error| job(error.into()))?;
        let hashes = HashQueue::start(&self.partial.path).map_err(|error| job(error.into()))?;
        loaded.files.iter().for_each(|file| hashes.push(file));
        let reader = Reader::new(files);
        let shards = hlrc::settle(&mut module, &reader, sink, true, signal::flag());
        let shards = shards.map_err(|error| job(error.into()))?;
        module.base_dir = self.args.output.clone();
        let mut report = self.report(&before, &module);
        report.training = Some(self.history.clone());
        let mut pipelines = loaded.pipelines.clone();
        let joined = self.generation.as_ref().is_some_and(|whole| whole.joins);
        match self.generation {
            Some(whole) => {
                if whole.joins {
                    pipelines.pop();
                }
                pipelines.push(whole.pipeline);
            }
            None => pipelines.push(self.history.settings.clone()),
        }
        let hashed = hashes.finish().map_err(|error| job(error.into()))?;
        let inputs = match joined {
            true => inputs(&self.args.model)?,
            false => infos(&loaded.files, hashed),
        };
        let contents = Contents {
            pipelines,
            seed: self.args.seed,
            inputs,
            sidecars: &loaded.sidecars,
            report: &report.to_json(),
        };
        let published = hlrc::publish(self.partial, &module, &shards, contents);
        published.map(|_| ()).map_err(|error| job(error.into()))
    }

    /// The report of the run that made the model, or a new one.
    fn report(&self, before: &Module, after: &Module) -> ModelReport {
        let path = self.args.model.join(hlrc::REPORT_FILE);
        let known = path.is_file().then(|| read::report(&path));
        match known {
            Some(Ok(stored)) => stored.report,
            _ => ModelReport::new(before, after, &Outcome::default(), ""),
        }
    }
}
