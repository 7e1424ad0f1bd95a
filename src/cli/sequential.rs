//! `--sequential`: statistics of what goes into linears behind a prefix that is compressed already.
//!
//! The pipeline runs once with statistics of the original, into a scratch folder; the text goes through
//! that model, and the sums of its inputs are those with which the original is coded.

use super::args::OptArgs;
use super::calibrate::{self, Opened, again};
use super::load::{self, Source};
use super::prepare::Prepared;
use super::target::Target;
use super::{Exit, Failure, opt};
use crate::calib::Statistics;
use crate::export::hlrc::partial_path;
use crate::pass::{MomentSource, Moments};
use crate::report::progress::Progress;
use std::path::{Path, PathBuf};

/// Statistics, and the folder that they lie in until they are dropped.
#[derive(Debug)]
pub struct Sequential {
    /// The statistics.
    pub statistics: Statistics,
    _scratch: Scratch,
}

impl MomentSource for Sequential {
    fn identity(&self) -> String {
        self.statistics.identity()
    }

    fn moments(&self, site: &str) -> Result<Option<Moments>, String> {
        self.statistics.moments(site)
    }

    fn behind(&self) -> bool {
        true
    }
}

#[derive(Debug)]
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // A scratch folder that can't be removed is not this command's failure; nor is one that isn't there.
        let _ = std::fs::remove_dir_all(&self.0);
        let _ = std::fs::remove_dir_all(partial_path(&self.0));
    }
}

/// Codes the model once, and takes statistics of the result.
///
/// Cost: the pipeline once more, a calibration, and the bytes of the output on disk meanwhile.
///
/// # Errors
/// As coding and as calibrating.
pub fn statistics(
    args: &OptArgs,
    prepared: &Prepared,
    progress: &Progress,
) -> Result<Sequential, Failure> {
    let model = args.input.as_deref().unwrap_or(Path::new("-"));
    // The same windows as those of the original, cut and, where it writes them itself, written by it.
    let text = {
        let original = Opened::new(model, args.threads)?;
        again::again((model, &original.engine), &args.calib, &args.talk, progress)?
    };
    let scratch = std::env::temp_dir().join(format!("hlrc-sequential-{}.hlrc", std::process::id()));
    let scratch = Scratch(scratch);
    let mut once = args.clone();
    once.sequential = false;
    (once.target_bpw, once.target_size) = (None, None);
    once.output = Some(scratch.0.clone());
    (once.force, once.resume, once.json) = (true, false, false);
    once.html = None;
    once.eval.clear();
    once.debug = Default::default();
    once.talk.quiet = true;
    progress.stage("Coding", "once with statistics of the original");
    let quiet = opt::progress(&once.talk);
    let loaded = load::source(&Source::of(model)?)?;
    let target = Target::Folder(scratch.0.clone());
    opt::execute(&once, prepared, &target, &quiet, loaded).map_err(begins_anew)?;

    let coded = Opened::new(&scratch.0, args.threads)?;
    let mut job = coded.job(&text, args.mem_limit);
    // Where the scratch folder was is nobody's business, and would make each run another.
    job.model.name = format!("{}, coded", model.display());
    let path = scratch.0.join("statistics");
    calibrate::measure(&job, &path, false, &args.talk, progress).map_err(begins_anew)?;
    Ok(Sequential {
        statistics: Statistics::open(&path).map_err(calibrate::failure)?,
        _scratch: scratch,
    })
}

/// Nothing of the first coding can be gone on from.
fn begins_anew(failure: Failure) -> Failure {
    match failure.exit {
        Exit::Interrupted => {
            failure.help("the same command begins anew: --sequential has no --resume")
        }
        _ => failure,
    }
}
