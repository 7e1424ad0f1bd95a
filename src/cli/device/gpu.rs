//! A plan that is read or made for a GPU, in its memory.

use super::{DeviceArgs, KvArg, Planning, failure};
use crate::cli::{Exit, Failure, load, signal};
use crate::plan::folder::{self, Opened};
use crate::plan::lower::{KvFormat, Options, lower};
use crate::plan::{Plan, PlanError};
use crate::report::human;
use crate::report::progress::Progress;
use crate::runtime::cuda::{Gpu, Loaded};
use crate::runtime::{Place, RuntimeError};
use crate::store::Reader;
use crate::weights::FileCache;
use std::path::{Path, PathBuf};
use std::sync::Arc;

impl DeviceArgs {
    /// The plan, and the device with the plan's memory. A plan without weights will do for `timing`.
    pub fn load(
        &self,
        path: &Path,
        planning: Planning,
        progress: &Progress,
        timing: bool,
    ) -> Result<(Arc<Plan>, Box<Loaded>), Failure> {
        let Place::Cuda(number) = self.device else {
            return Err(
                Failure::new(Exit::Usage, "the processor is no GPU").help("--device cuda:0")
            );
        };
        // Before minutes are spent on packing.
        let gpu = Gpu::open(number).map_err(|error| failure(&error))?;
        let scratch = Scratch::new();
        let opened = match path.join(folder::PLAN_FILE).is_file() {
            true => {
                if self.kv.is_some() || planning.context.is_some() {
                    let what =
                        "--kv and --ctx have no effect on a plan, which was made with its own";
                    return Err(
                        Failure::new(Exit::Usage, what).help("leave them out, or name the model")
                    );
                }
                folder::open(path)
            }
            false => {
                let mut options = Options::new(gpu.target().map_err(|error| failure(&error))?);
                options.context = planning.context;
                options.exact = planning.exact;
                if self.kv == Some(KvArg::Q8) {
                    options.kv = KvFormat::Q8;
                }
                make(path, &options, &scratch, progress)?
            }
        };
        let Opened { plan, blob, cubins } =
            opened.map_err(|error| failure(&RuntimeError::Plan(error)))?;
        if blob.is_none() && !timing {
            let what = format!(
                "{}: the plan was made of a configuration alone and has no weights",
                path.display()
            );
            return Err(Failure::new(Exit::Input, what)
                .help("make it of the model itself with --emit plan"));
        }
        progress.stage(
            "Loading",
            &format!("{} onto {}", human::size(plan.device_bytes()), gpu.name()),
        );
        let bytes = blob.as_ref().map(|blob| blob.bytes()).transpose();
        let bytes = bytes.map_err(|error| Failure::new(Exit::Input, error.to_string()))?;
        let loaded = Loaded::new(gpu, &plan, bytes, &cubins).map_err(|error| failure(&error))?;
        Ok((Arc::new(plan), Box::new(loaded)))
    }
}

/// Plans and packs a model into a folder that goes away.
fn make(
    path: &Path,
    options: &Options,
    scratch: &Scratch,
    progress: &Progress,
) -> Result<Result<Opened, PlanError>, Failure> {
    let loaded = load::executable(path)?;
    loaded.tell(path, progress);
    progress.stage(
        "Planning",
        &format!("{} for {}", loaded.module.name, options.target.card),
    );
    let planned = lower(&loaded.module, options).and_then(|lowered| {
        let files = FileCache::new();
        let reader = Reader::new(&files);
        let mut each = |name: &str, bytes: u64| {
            progress.detail(&format!("packing {name}, {}", human::size(bytes)))
        };
        folder::write(
            &scratch.0,
            lowered,
            Some((&loaded.module, &reader)),
            None,
            signal::flag(),
            &mut each,
        )
    });
    Ok(planned.and_then(|_| folder::open(&scratch.0)))
}

/// A folder for packed weights, under the system's (`TMPDIR`), that goes with this.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        Self(std::env::temp_dir().join(format!("hlrc-opt-{}.plan", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Mapped files stay readable without their names; what can't be removed is the system's to clear.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
