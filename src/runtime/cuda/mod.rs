//! Plans on an NVIDIA GPU, through the driver and NVRTC, both loaded at run time.
//!
//! [`Gpu::open`] says clearly when there is no driver or no device. [`Loaded::new`] checks that the plan
//! is for the device and fits it, compiles its kernel variants ([`compile`], cached on disk), streams
//! the packed weights into device memory ([`memory`]) and binds every step. Programs run as CUDA graphs
//! ([`launch`]); what changes between runs, tokens and positions, lies in small buffers that are written
//! before.
#![allow(unsafe_code)] // the driver is a C library

mod bench;
mod compile;
mod launch;
mod memory;

pub use bench::{Measured, StepTime};
pub(super) use compile::{has_nvrtc, machine_code};
pub use launch::Loaded;

use super::RuntimeError;
use crate::plan::Target;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use cudarc::driver::{CudaContext, CudaStream, DriverError, sys};
use std::sync::Arc;

/// A GPU that is ready to be used.
#[derive(Clone)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    /// Compute capability.
    capability: (i32, i32),
    /// A launch may start before the one in front of it has ended, where its kernel waits itself.
    overlaps: bool,
}

/// The first driver that records such launches into graphs.
const OVERLAPPING_DRIVER: i32 = 12030;

/// Attaches what was being done to the driver's error.
fn driver(doing: impl Into<String>) -> impl FnOnce(DriverError) -> RuntimeError {
    let doing = doing.into();
    move |error| RuntimeError::Driver {
        doing,
        problem: describe(error),
    }
}

/// The driver's name for an error and its sentence.
fn describe(error: DriverError) -> String {
    let text =
        |r: Result<&std::ffi::CStr, DriverError>| r.ok().map(|s| s.to_string_lossy().into_owned());
    let name = text(error.error_name()).unwrap_or_else(|| format!("{:?}", error.0));
    match text(error.error_string()) {
        Some(sentence) => format!("{name}: {sentence}"),
        None => name,
    }
}

/// Whether there is a driver that can be loaded.
///
/// # Errors
/// There is none: without it every call would end the program.
fn probe() -> Result<(), RuntimeError> {
    // SAFETY: the probe opens a library by name and looks for nothing in it.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let problem =
        "the NVIDIA driver (libcuda.so.1, nvcuda.dll) is not installed; --device cpu runs here";
    Err(RuntimeError::NoGpu(problem.to_string()))
}

impl Gpu {
    /// The GPU with this number.
    ///
    /// # Errors
    /// There is no driver, no device, or no device of this number.
    pub fn open(ordinal: usize) -> Result<Self, RuntimeError> {
        probe()?;
        cudarc::driver::result::init().map_err(|e| RuntimeError::NoGpu(describe(e)))?;
        let count = CudaContext::device_count().map_err(|e| RuntimeError::NoGpu(describe(e)))?;
        if usize::try_from(count).is_ok_and(|count| ordinal >= count) {
            let problem = match count {
                0 => "the driver finds no device".to_string(),
                1 => format!("there is no cuda:{ordinal}, only cuda:0"),
                _ => format!(
                    "there is no cuda:{ordinal}, only cuda:0 to cuda:{}",
                    count - 1
                ),
            };
            return Err(RuntimeError::NoGpu(problem));
        }
        let context = CudaContext::new(ordinal).map_err(|e| RuntimeError::NoGpu(describe(e)))?;
        // SAFETY: one stream does everything, in order: there is nothing to track.
        unsafe { context.disable_event_tracking() };
        let name = context
            .name()
            .map_err(driver("asking for the device's name"))?;
        let capability = context
            .compute_capability()
            .map_err(driver("asking for the compute capability"))?;
        let stream = context.new_stream().map_err(driver("making a stream"))?;
        if capability < (8, 0) {
            let problem = format!(
                "{name} has compute capability {}.{}; kernels need 8.0 (Ampere)",
                capability.0, capability.1
            );
            return Err(RuntimeError::NoGpu(problem));
        }
        let mut version = 0;
        // SAFETY: the driver is loaded; it writes one number.
        let told = unsafe { sys::cuDriverGetVersion(&raw mut version) }.result();
        told.map_err(driver("asking for the driver's version"))?;
        Ok(Self {
            context,
            stream,
            name,
            capability,
            overlaps: capability >= (9, 0) && version >= OVERLAPPING_DRIVER,
        })
    }

    /// `sm_89`
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// What it is called.
    pub fn name(&self) -> &str {
        &self.name
    }

    fn attribute(&self, attribute: Attribute) -> Result<u64, RuntimeError> {
        let value = self.context.attribute(attribute);
        let value = value.map_err(driver("asking for an attribute of the device"))?;
        Ok(u64::try_from(value).unwrap_or(0))
    }

    /// Free and total memory, bytes.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn memory(&self) -> Result<(u64, u64), RuntimeError> {
        let (free, total) = self
            .context
            .mem_get_info()
            .map_err(driver("asking for free memory"))?;
        Ok((free as u64, total as u64))
    }

    /// A target with this device's sizes, for making a plan; rates that the driver does not tell are
    /// those of the shipped target of the architecture.
    ///
    /// # Errors
    /// The driver refuses.
    pub fn target(&self) -> Result<Target, RuntimeError> {
        let shipped = ["sm_80", "sm_86", "sm_89", "sm_90", "sm_120"];
        let number = |arch: &str| arch.trim_start_matches("sm_").parse::<i32>().unwrap_or(0);
        let own = self.capability.0 * 10 + self.capability.1;
        let nearest = shipped
            .iter()
            .rev()
            .find(|a| number(a) <= own)
            .unwrap_or(&"sm_80");
        let mut target = Target::named(nearest)?;
        let size = |attribute| {
            self.attribute(attribute)
                .map(|v| u32::try_from(v).unwrap_or(u32::MAX))
        };
        target.arch = self.arch();
        let named = target
            .cards
            .iter()
            .find(|card| self.name.contains(&card.card));
        if let Some(card) = named {
            target.bandwidth_gbps = card.bandwidth_gbps;
        }
        target.card.clone_from(&self.name);
        target.cards.clear();
        target.sms = size(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        target.shared_bytes =
            size(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        target.l2_bytes = self.attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?;
        target.memory_bytes = self.memory()?.1;
        // Double data rate: two transfers a clock. Not every driver tells.
        let khz = self
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)
            .unwrap_or(0);
        let bits = self
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)
            .unwrap_or(0);
        let gbps = 2.0 * khz as f64 * 1e3 * bits as f64 / 8.0 / 1e9;
        if gbps > 1.0 {
            target.bandwidth_gbps = gbps;
        }
        let clock = self
            .attribute(Attribute::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)
            .unwrap_or(0);
        if clock > 0 {
            target.clock_mhz = clock as f64 / 1e3;
        }
        Ok(target)
    }

    /// Waits for all that was asked of it.
    fn wait(&self, doing: &str) -> Result<(), RuntimeError> {
        self.stream.synchronize().map_err(driver(doing))
    }
}
