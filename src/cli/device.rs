//! Models on a GPU: a plan that is read, or made for the device, in its memory.

use super::{Exit, Failure, signal};
use crate::plan::PlanError;
use crate::report::progress::Progress;
use crate::runtime::{Device, Place, PlanModel, RuntimeError};
use clap::{Args, ValueEnum};
use std::path::Path;

#[cfg(feature = "cuda")]
mod gpu;

const DEVICE: &str = "Device";

/// Where a model runs.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct DeviceArgs {
    /// cpu, or cuda:N for an NVIDIA GPU (Ampere or later); MODEL may be the folder of a kernel plan then
    #[arg(long, value_name = "DEVICE", default_value = "cpu", value_parser = place, help_heading = DEVICE)]
    pub device: Place,
    /// How a GPU keeps keys and values [default: f16]
    #[arg(long, value_enum, value_name = "FORMAT", help_heading = DEVICE)]
    pub kv: Option<KvArg>,
}

/// How keys and values are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum KvArg {
    /// 2 bytes
    F16,
    /// 8-bit codes, 32 sharing an f16 scale
    Q8,
}

fn place(text: &str) -> Result<Place, String> {
    text.parse()
        .map_err(|error: RuntimeError| error.to_string())
}

/// How a model is planned where it is no plan yet.
#[derive(Debug, Clone, Copy)]
pub struct Planning {
    /// Positions; the model's most, at most 8192, where absent.
    pub context: Option<u32>,
    /// Activations stay f32 instead of 8 bits.
    pub exact: bool,
}

/// A language model on a device.
pub type DeviceModel = PlanModel<Box<dyn Device>>;

impl DeviceArgs {
    /// Refuses what only a GPU takes where the model runs on the processor.
    ///
    /// # Errors
    /// A usage error that names the option.
    pub fn check(&self) -> Result<(), Failure> {
        if self.device == Place::Cpu && self.kv.is_some() {
            let what = "--kv has no effect on the processor, which keeps keys and values in f32";
            return Err(Failure::new(Exit::Usage, what)
                .help("leave it out, or name a GPU with --device cuda:0"));
        }
        Ok(())
    }

    /// Puts a model on the GPU that was asked for.
    ///
    /// # Errors
    /// There is no such GPU; the model can't be planned, does not fit, or is for another device.
    pub fn open(
        &self,
        path: &Path,
        planning: Planning,
        progress: &Progress,
    ) -> Result<DeviceModel, Failure> {
        let (plan, device) = self.load(path, planning, progress, false)?;
        let mut model = PlanModel::new(plan, device as Box<dyn Device>);
        model.assign_pages().map_err(|error| failure(&error))?;
        model.set_interrupt(signal::flag());
        Ok(model)
    }

    #[cfg(not(feature = "cuda"))]
    fn load(
        &self,
        _: &Path,
        _: Planning,
        _: &Progress,
        _: bool,
    ) -> Result<(std::sync::Arc<crate::plan::Plan>, Box<dyn Device>), Failure> {
        let what = format!(
            "--device {}: this program was built without the feature `cuda`",
            self.device
        );
        Err(Failure::new(Exit::Failure, what).help("build it with default features"))
    }
}

/// Errors of a runtime as failures of the command.
pub fn failure(error: &RuntimeError) -> Failure {
    let exit = match error {
        RuntimeError::UnknownDevice(_) => Exit::Usage,
        RuntimeError::Memory { .. } | RuntimeError::Unfit(_) | RuntimeError::Context { .. } => {
            Exit::Infeasible
        }
        RuntimeError::Interrupted | RuntimeError::Plan(PlanError::Interrupted) => Exit::Interrupted,
        RuntimeError::Plan(PlanError::DoesNotFit(_)) => Exit::Infeasible,
        RuntimeError::Plan(
            PlanError::Unsupported { .. }
            | PlanError::NotLanguageModel(_)
            | PlanError::Format { .. },
        ) => Exit::Input,
        _ => Exit::Failure,
    };
    Failure::new(exit, error.to_string())
}
