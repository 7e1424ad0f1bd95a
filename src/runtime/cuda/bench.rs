//! How long each step takes, beside its estimate and the bandwidth that the device was seen to have.

use super::{Gpu, Loaded, RuntimeError, compile, driver};
use crate::plan::{Plan, Step};
use crate::runtime::bind::Launch;
use crate::runtime::device::Device;
use cudarc::driver::{DevicePtr, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// Bytes that are read to measure bandwidth: more than any L2 holds.
const READ_BYTES: usize = 1 << 30;
/// Times that a thing is done between two looks at the clock.
const REPEATS: u32 = 20;
/// Launches of a graph that times a kind of step, at least.
const LAUNCHES: usize = 40;

/// A step and its times.
#[derive(Clone, Debug)]
pub struct StepTime {
    /// The step's name.
    pub name: String,
    /// The kernel.
    pub kernel: String,
    /// Bytes by the plan.
    pub bytes: u64,
    /// Microseconds by the plan.
    pub estimated_us: f64,
    /// Microseconds measured: a launch's share of a graph of this step in all layers, so that weights do
    /// not come from L2 unless those of all layers fit there.
    pub measured_us: f64,
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Measured {
    /// The device.
    pub device: String,
    /// What a kernel that only reads reaches, GB/s.
    pub read_gbps: f64,
    /// Steps of the program, in order.
    pub steps: Vec<StepTime>,
    /// Microseconds of the program as a graph.
    pub program_us: f64,
}

impl Loaded {
    /// Times every step of a program, and the program as a graph. Inputs are as they were left.
    ///
    /// # Errors
    /// There is no such program, or the driver refuses.
    pub fn bench(&mut self, plan: &Plan, program: &str) -> Result<Measured, RuntimeError> {
        let described = plan.program(program);
        let described = described.ok_or_else(|| {
            RuntimeError::broken("the plan", format!("has no program `{program}`"))
        })?;
        let read_gbps = read_bandwidth(&self.gpu)?;
        // Twice: the first run launches, the second replays.
        self.run(program)?;
        self.run(program)?;
        let launches = self.programs.get(program).cloned().unwrap_or_default();
        let kind = |l: &Launch, s: &Step| (l.variant, l.grid, l.shared_bytes, s.estimate.bytes);
        let mut kinds: HashMap<_, Vec<&Launch>> = HashMap::new();
        for (launch, step) in launches.iter().zip(&described.steps) {
            kinds.entry(kind(launch, step)).or_default().push(launch);
        }
        let mut times = HashMap::new();
        for (key, members) in kinds {
            let rounds = LAUNCHES.div_ceil(members.len());
            let count = rounds * members.len();
            let graph = self.record(|own| {
                let all = members.iter().cycle().take(count);
                all.copied().try_for_each(|launch| own.launch(launch))
            })?;
            let launched = || graph.launch().map_err(driver("timing"));
            times.insert(key, timed(&self.gpu, 3, launched)? / count as f64);
        }
        let steps = launches.iter().zip(&described.steps);
        let steps = steps.map(|(launch, step)| StepTime {
            name: step.name.clone(),
            kernel: plan.kernels[launch.variant].kernel.clone(),
            bytes: step.estimate.bytes,
            estimated_us: step.estimate.us,
            measured_us: times.get(&kind(launch, step)).copied().unwrap_or(f64::NAN),
        });
        let steps = steps.collect();
        let gpu = self.gpu.clone();
        let program_us = timed(&gpu, REPEATS, || self.run(program))?;
        Ok(Measured {
            device: self.gpu.name.clone(),
            read_gbps,
            steps,
            program_us,
        })
    }
}

/// Microseconds of one time, of several back to back, behind one that does not count.
fn timed(
    gpu: &Gpu,
    repeats: u32,
    mut work: impl FnMut() -> Result<(), RuntimeError>,
) -> Result<f64, RuntimeError> {
    let doing = "timing";
    let event = || {
        gpu.stream
            .record_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))
            .map_err(driver(doing))
    };
    work()?;
    let start = event()?;
    for _ in 0..repeats {
        work()?;
    }
    let end = event()?;
    gpu.wait(doing)?;
    let ms = start.elapsed_ms(&end).map_err(driver(doing))?;
    Ok(f64::from(ms) * 1e3 / f64::from(repeats))
}

/// GB/s of a kernel that reads a gigabyte and keeps a sum.
fn read_bandwidth(gpu: &Gpu) -> Result<f64, RuntimeError> {
    let doing = "measuring bandwidth";
    let source = crate::plan::kernels::flattened("read_bandwidth").unwrap_or_default();
    let function = compile::load(gpu, "read_bandwidth", "read_bandwidth", &source, &[])?;
    let data = gpu
        .stream
        .alloc_zeros::<u8>(READ_BYTES)
        .map_err(driver(doing))?;
    let sums = gpu.stream.alloc_zeros::<u8>(4).map_err(driver(doing))?;
    let (mut from, _from) = data.device_ptr(&gpu.stream);
    let (mut to, _to) = sums.device_ptr(&gpu.stream);
    let mut words = i32::try_from(READ_BYTES / 16).unwrap_or(i32::MAX);
    let sms = gpu.attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
    let blocks = u32::try_from(sms * 4).unwrap_or(u32::MAX);
    let us = timed(gpu, REPEATS, || {
        let mut arguments: [*mut c_void; 3] = [
            (&raw mut from).cast(),
            (&raw mut to).cast(),
            (&raw mut words).cast(),
        ];
        // SAFETY: the arguments are those of kernels/read_bandwidth.cu; it reads `words` times 16 bytes.
        let launched = unsafe {
            result::launch_kernel(
                function.cu_function(),
                (blocks, 1, 1),
                (256, 1, 1),
                0,
                gpu.stream.cu_stream(),
                &mut arguments,
            )
        };
        launched.map_err(driver(doing))
    })?;
    Ok(READ_BYTES as f64 / us / 1e3)
}
