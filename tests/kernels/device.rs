//! A plan's memory and launches in emulation, as a runtime has them on a card.

#![allow(unsafe_code)] // launches get addresses

use crate::emulate::{Kernel, Region, Schedule, Shape, Traffic};
use hlrc::ir::Module;
use hlrc::plan::lower::{Options, lower};
use hlrc::plan::pack::{Sink, pack};
use hlrc::plan::verify::verify;
use hlrc::plan::{Plan, Program, Target, Value, kernels};
use hlrc::runtime::bind::{Addresses, Argument, Launch, bind};
use hlrc::runtime::{Device, RuntimeError};
use hlrc::store::Reader;
use hlrc::weights::FileCache;
use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A model behind a pipeline, planned and packed.
pub(crate) struct Built {
    pub(crate) module: Module,
    pub(crate) files: FileCache,
    pub(crate) plan: Arc<Plan>,
    pub(crate) blob: Vec<u8>,
    _folder: tempfile::TempDir,
}

/// Rewrites a model with the tool, plans and packs it.
pub(crate) fn build(model: &Path, pipeline: &str, options: &Options) -> Built {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command.arg("-q").arg(model).args(["-p", pipeline, "-o"]);
    let output = command.arg(&path).output().expect("started");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{pipeline}: {told}");
    let module = hlrc::cli::load::executable(&path)
        .unwrap_or_else(|e| panic!("{e}"))
        .module;
    let files = FileCache::new();
    let lowered = lower(&module, options).unwrap_or_else(|e| panic!("{e}"));
    verify(&lowered.plan).unwrap_or_else(|e| panic!("{e}"));
    let mut sink = Sink::Memory(Vec::new());
    let plan = pack(
        lowered,
        &module,
        &Reader::new(&files),
        &mut sink,
        &AtomicBool::new(false),
        &mut |_, _| {},
    );
    let plan = Arc::new(plan.unwrap_or_else(|e| panic!("{e}")));
    let Sink::Memory(blob) = sink else {
        panic!("packed into memory")
    };
    Built {
        module,
        files,
        plan,
        blob,
        _folder: folder,
    }
}

/// What a launch moved, by the name of each buffer or section.
pub(crate) struct Moved {
    pub(crate) step: String,
    pub(crate) regions: Vec<(String, Traffic)>,
}

/// Memory at a multiple of 256.
struct Aligned {
    _room: Vec<u8>,
    start: *mut u8,
    bytes: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut room = vec![0xff; bytes.len() + 256];
        let skip = room.as_ptr().align_offset(256);
        room[skip..skip + bytes.len()].copy_from_slice(bytes);
        let start = room[skip..].as_mut_ptr();
        Self {
            _room: room,
            start,
            bytes: bytes.len(),
        }
    }

    fn poisoned(bytes: u64) -> Self {
        Self::new(&vec![0xff; usize::try_from(bytes).expect("a size")])
    }

    fn at(&self, offset: u64) -> *mut u8 {
        let offset = usize::try_from(offset).expect("an offset");
        assert!(offset <= self.bytes, "an address within the memory");
        // SAFETY: checked just now.
        unsafe { self.start.add(offset) }
    }
}

/// A device that runs kernels in emulation.
pub(crate) struct Emulated {
    pub(crate) plan: Arc<Plan>,
    blob: Aligned,
    persistent: Aligned,
    arena: Aligned,
    compiled: HashMap<usize, Kernel>,
    pub(crate) schedule: Schedule,
    /// What launches moved, where that is asked for.
    pub(crate) moved: Option<Vec<Moved>>,
}

impl Addresses for Emulated {
    fn buffer(&self, program: &Program, name: &str) -> Option<u64> {
        match program.buffer(name) {
            Some(buffer) => Some(self.arena.at(buffer.offset) as u64),
            None => self
                .plan
                .persistent
                .iter()
                .find(|b| b.name == name)
                .map(|b| self.persistent.at(b.offset) as u64),
        }
    }

    fn section(&self, weight: &str, section: &str) -> Option<u64> {
        let found = self.plan.weight(weight)?.section(section)?;
        Some(self.blob.at(found.offset) as u64)
    }
}

impl Emulated {
    pub(crate) fn new(plan: Arc<Plan>, blob: &[u8], schedule: Schedule) -> Self {
        let end = plan
            .persistent
            .iter()
            .map(|b| b.offset + b.bytes)
            .max()
            .unwrap_or(0);
        let arena = plan
            .programs
            .iter()
            .map(|p| p.arena_bytes)
            .max()
            .unwrap_or(0);
        let persistent = Aligned::poisoned(end);
        for buffer in plan
            .persistent
            .iter()
            .filter(|b| b.filled.as_deref() == Some("zero"))
        {
            // SAFETY: the buffer lies within the allocation.
            unsafe {
                persistent
                    .at(buffer.offset)
                    .write_bytes(0, buffer.bytes as usize)
            };
        }
        Self {
            blob: Aligned::new(blob),
            persistent,
            arena: Aligned::poisoned(arena),
            plan,
            compiled: HashMap::new(),
            schedule,
            moved: None,
        }
    }

    /// The memory behind a step's arguments: each buffer and section to its end.
    fn regions(&self, program: &Program, step: &hlrc::plan::Step) -> Vec<Region> {
        let kernel = &self.plan.kernels[step.kernel as usize].kernel;
        let params = kernels::find(kernel).expect("a kernel").params();
        let mut regions: Vec<Region> = Vec::new();
        for param in params {
            let (name, base, bytes) = match step.args.get(&param.name) {
                Some(Value::Buffer { name, .. }) => {
                    let buffer = program
                        .buffer(name)
                        .or_else(|| self.plan.persistent.iter().find(|b| b.name == *name));
                    (
                        name.clone(),
                        self.buffer(program, name),
                        buffer.expect("a buffer").bytes,
                    )
                }
                Some(Value::Section { weight, section }) => {
                    let found = self.plan.weight(weight).and_then(|w| w.section(section));
                    (
                        format!("@{weight}/{section}"),
                        self.section(weight, section),
                        found.expect("a section").bytes,
                    )
                }
                _ => continue,
            };
            let writable = !param.read_only;
            match regions.iter_mut().find(|r| r.name == name) {
                Some(region) => region.writable |= writable,
                None => regions.push(Region {
                    name,
                    base: base.expect("an address") as *mut u8,
                    bytes: bytes as usize,
                    writable,
                }),
            }
        }
        regions
    }

    /// Compiles what the plan names; `false` without a compiler.
    pub(crate) fn compile(&mut self) -> bool {
        (0..self.plan.kernels.len()).all(|index| self.compile_variant(index))
    }

    fn compile_variant(&mut self, index: usize) -> bool {
        if self.compiled.contains_key(&index) {
            return true;
        }
        let variant = &self.plan.kernels[index];
        let defines: Vec<(&str, usize)> = variant
            .defines
            .iter()
            .map(|(k, v)| (k.as_str(), *v as usize))
            .collect();
        let Some(kernel) = Kernel::compile(&variant.kernel, &defines) else {
            return false;
        };
        self.compiled.insert(index, kernel);
        true
    }

    /// Runs the first steps of a program; `false` without a compiler.
    pub(crate) fn run_first(&mut self, program: &str, count: usize) -> bool {
        let plan = self.plan.clone();
        let program = plan.program(program).expect("a program");
        let mut steps = program.steps.iter().take(count);
        if !steps.all(|s| self.compile_variant(s.kernel as usize)) {
            return false;
        }
        let launches = bind(&plan, program, &*self).unwrap_or_else(|e| panic!("{e}"));
        for (launch, step) in launches.iter().zip(&program.steps).take(count) {
            self.launch(program, step, launch);
        }
        true
    }

    fn launch(&mut self, program: &Program, step: &hlrc::plan::Step, launch: &Launch) {
        let regions = self.regions(program, step);
        let slots: Vec<[u8; 8]> = launch
            .arguments
            .iter()
            .map(|a| match *a {
                Argument::Pointer(p) => p.to_ne_bytes(),
                Argument::Int(i) => u64::from(i.cast_unsigned()).to_le_bytes(),
                Argument::Float(x) => u64::from(x.to_bits()).to_le_bytes(),
            })
            .collect();
        let blocks: u32 = launch.grid.iter().product();
        let variant = &self.plan.kernels[launch.variant];
        // Blocks with low-rank terms wait for each other; others are run in smaller groups.
        let together = variant.kernel == "fused_linear" && variant.define("LOWRANK") == 1;
        let shape = Shape {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: u64::from(launch.shared_bytes),
            resident: if together { blocks } else { 16 },
        };
        let kernel = &self.compiled[&launch.variant];
        // SAFETY: the regions are this device's memory, and one launch runs at a time.
        let done = unsafe { kernel.call(shape, &regions, &slots, self.schedule) };
        let traffic = done.unwrap_or_else(|e| panic!("{}: {e}", launch.name));
        if let Some(moved) = &mut self.moved {
            let names = regions.iter().map(|r| r.name.clone());
            moved.push(Moved {
                step: launch.name.clone(),
                regions: names.zip(traffic).collect(),
            });
        }
    }
}

impl Device for Emulated {
    fn write(&mut self, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        let found = self
            .plan
            .persistent
            .iter()
            .find(|b| b.name == buffer)
            .expect("a buffer");
        assert!(bytes.len() as u64 <= found.bytes, "{buffer}");
        // SAFETY: checked just now.
        unsafe {
            self.persistent
                .at(found.offset)
                .copy_from(bytes.as_ptr(), bytes.len())
        };
        Ok(())
    }

    fn read(&mut self, buffer: &str, bytes: &mut [u8]) -> Result<(), RuntimeError> {
        let found = self
            .plan
            .persistent
            .iter()
            .find(|b| b.name == buffer)
            .expect("a buffer");
        assert!(bytes.len() as u64 <= found.bytes, "{buffer}");
        // SAFETY: checked just now.
        unsafe {
            bytes
                .as_mut_ptr()
                .copy_from(self.persistent.at(found.offset), bytes.len())
        };
        Ok(())
    }

    fn run(&mut self, program: &str) -> Result<(), RuntimeError> {
        let plan = self.plan.clone();
        let program = plan.program(program).expect("a program");
        let launches = bind(&plan, program, &*self)?;
        for (launch, step) in launches.iter().zip(&program.steps) {
            self.launch(program, step, launch);
        }
        Ok(())
    }
}

/// A card so small that emulation is quick, with the limits of consumer cards.
pub(crate) fn target() -> Target {
    let mut target = Target::named("sm_89").unwrap_or_else(|e| panic!("{e}"));
    target.sms = 2;
    target
}
