//! A plan on the device: its launches, each program as a CUDA graph.

use super::memory::Memory;
use super::{Gpu, RuntimeError, compile, driver};
use crate::plan::{self, Plan};
use crate::runtime::bind::{self, Argument, Launch};
use crate::runtime::device::Device;
use cudarc::driver::sys::CUfunction_attribute as Attribute;
use cudarc::driver::{CudaFunction, CudaGraph, result, sys};
use std::collections::HashMap;
use std::ffi::c_void;

/// Shared memory of a block that needs no asking, bytes.
const USUAL_SHARED_BYTES: u32 = 48 << 10;

/// A plan that is ready to run on a GPU.
pub struct Loaded {
    pub(super) gpu: Gpu,
    pub(super) functions: Vec<CudaFunction>,
    /// By variant: launches may start before those in front of them have ended.
    overlapping: Vec<bool>,
    pub(super) programs: HashMap<String, Vec<Launch>>,
    graphs: HashMap<String, CudaGraph>,
    memory: Memory,
}

impl Loaded {
    /// Checks, compiles, uploads and binds. `cubins` has the machine code of variants, by their index,
    /// where a plan brings it along. Without a blob weights are made up, which serves timing alone.
    ///
    /// # Errors
    /// The plan is for another architecture or a larger device, does not fit its memory, or keeps
    /// weights on the host; a kernel does not compile; the driver refuses; weights can't be made up.
    pub fn new(
        gpu: Gpu,
        plan: &Plan,
        blob: Option<&[u8]>,
        cubins: &[Option<Vec<u8>>],
    ) -> Result<Self, RuntimeError> {
        let arch = gpu.arch();
        if plan.target.arch != arch {
            let problem = format!(
                "it is for {}, {} is {arch}: make it with --target {arch}",
                plan.target.arch, gpu.name
            );
            return Err(RuntimeError::Unfit(problem));
        }
        let on_host = plan
            .programs
            .iter()
            .flat_map(|p| &p.steps)
            .find(|s| s.place == plan::Place::Host);
        if let Some(step) = on_host {
            let problem = format!(
                "step `{}` is to run on the host, which needs weights there; give all weights the device",
                step.name
            );
            return Err(RuntimeError::Unfit(problem));
        }
        let functions = compile::functions(&gpu, &plan.kernels, cubins)?;
        let memory = Memory::new(&gpu, plan, blob)?;
        let mut programs = HashMap::new();
        for program in &plan.programs {
            let launches = bind::bind(plan, program, &memory)?;
            for launch in &launches {
                prepare(&gpu, plan, &functions, launch)?;
            }
            programs.insert(program.name.clone(), launches);
        }
        let waits = |v: &plan::Variant| gpu.overlaps && compile::waits(&v.kernel);
        let overlapping = plan.kernels.iter().map(waits).collect();
        Ok(Self {
            gpu,
            functions,
            overlapping,
            programs,
            graphs: HashMap::new(),
            memory,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// Launches one step.
    pub(super) fn launch(&self, launch: &Launch) -> Result<(), RuntimeError> {
        let mut values: Vec<[u8; 8]> = launch.arguments.iter().map(bytes_of).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| v.as_mut_ptr().cast()).collect();
        let [x, y, z] = launch.grid;
        let function = self.functions[launch.variant].cu_function();
        let stream = self.gpu.stream.cu_stream();
        if !self.overlapping[launch.variant] {
            // SAFETY: arguments follow the kernel's ABI, which `bind` took from the table; the verifier has
            // checked that launches stay within their buffers, which live as long as `self`.
            let launched = unsafe {
                result::launch_kernel(
                    function,
                    (x, y, z),
                    (launch.block, 1, 1),
                    launch.shared_bytes,
                    stream,
                    &mut pointers,
                )
            };
            return launched.map_err(driver(format!("launching {}", launch.name)));
        }
        let mut early = sys::CUlaunchAttribute {
            id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: sys::CUlaunchAttributeValue {
                programmaticStreamSerializationAllowed: 1,
            },
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared_bytes,
            hStream: stream,
            attrs: &raw mut early,
            numAttrs: 1,
        };
        // SAFETY: as above; the kernel waits for what is in front of it before it touches a buffer.
        let launched = unsafe {
            sys::cuLaunchKernelEx(
                &raw const config,
                function,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        launched
            .result()
            .map_err(driver(format!("launching {}", launch.name)))
    }

    fn launch_all(&self, program: &str) -> Result<(), RuntimeError> {
        let launches = self.programs.get(program);
        let launches = launches.ok_or_else(|| {
            RuntimeError::broken("the plan", format!("has no program `{program}`"))
        })?;
        launches.iter().try_for_each(|launch| self.launch(launch))
    }

    /// Records launches as a graph; nothing runs.
    pub(super) fn record(
        &self,
        launches: impl FnOnce(&Self) -> Result<(), RuntimeError>,
    ) -> Result<CudaGraph, RuntimeError> {
        let doing = "recording a graph";
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.gpu.stream.begin_capture(mode).map_err(driver(doing))?;
        let launched = launches(self);
        let graph = self
            .gpu
            .stream
            .end_capture(sys::CUgraphInstantiate_flags(0))
            .map_err(driver(doing));
        launched?;
        graph?.ok_or_else(|| RuntimeError::broken("the plan", "has a program without launches"))
    }
}

fn bytes_of(argument: &Argument) -> [u8; 8] {
    let small = |bytes: [u8; 4]| {
        let mut all = [0; 8];
        all[..4].copy_from_slice(&bytes);
        all
    };
    match *argument {
        Argument::Pointer(p) => p.to_ne_bytes(),
        Argument::Int(i) => small(i.to_ne_bytes()),
        Argument::Float(x) => small(x.to_ne_bytes()),
    }
}

/// Allows a function the shared memory of a launch; checks that blocks which wait for each other all
/// run at once.
fn prepare(
    gpu: &Gpu,
    plan: &Plan,
    functions: &[CudaFunction],
    launch: &Launch,
) -> Result<(), RuntimeError> {
    let function = &functions[launch.variant];
    if launch.shared_bytes > USUAL_SHARED_BYTES {
        let bytes = i32::try_from(launch.shared_bytes).unwrap_or(i32::MAX);
        let doing = format!("allowing {} {bytes} bytes of shared memory", launch.name);
        let old = function
            .get_attribute(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES)
            .unwrap_or(0);
        if old < bytes {
            let set = function.set_attribute(
                Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES,
                bytes,
            );
            set.map_err(driver(doing))?;
        }
    }
    if plan.kernels[launch.variant].kernel != "fused_linear" {
        return Ok(());
    }
    let each = function.occupancy_max_active_blocks_per_multiprocessor(
        launch.block,
        launch.shared_bytes as usize,
        None,
    );
    let each = u64::from(each.map_err(driver(format!(
        "asking how many blocks of {} fit",
        launch.name
    )))?);
    let sms = gpu.attribute(
        cudarc::driver::sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT,
    )?;
    let blocks: u64 = launch.grid.iter().map(|&n| u64::from(n)).product();
    if blocks > each * sms {
        let problem = format!(
            "step `{}` has {blocks} blocks that wait for each other, and {} runs {each} on each of {sms} multiprocessors; \
             make the plan for this card",
            launch.name, gpu.name
        );
        return Err(RuntimeError::Unfit(problem));
    }
    Ok(())
}

impl Device for Loaded {
    fn write(&mut self, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        self.memory.write(&self.gpu, buffer, bytes)
    }

    fn read(&mut self, buffer: &str, bytes: &mut [u8]) -> Result<(), RuntimeError> {
        self.memory.read(&self.gpu, buffer, bytes)
    }

    /// The first run launches step by step, so that a failing launch is named; later ones replay a graph.
    fn run(&mut self, program: &str) -> Result<(), RuntimeError> {
        if let Some(graph) = self.graphs.get(program) {
            return graph.launch().map_err(driver(format!("running {program}")));
        }
        self.launch_all(program)?;
        self.gpu.wait(&format!("running {program}"))?;
        let graph = self.record(|own| own.launch_all(program))?;
        self.graphs.insert(program.to_string(), graph);
        Ok(())
    }
}
