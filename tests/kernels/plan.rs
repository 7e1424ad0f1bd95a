//! Whole plans in emulation: the launches of a plan, on the packed bytes, give the executor's tokens.

#![allow(unsafe_code)] // launches get addresses

use crate::emulate::{Kernel, Region, Schedule, Shape};
use hlrc::exec::{Engine, Options as ExecOptions, Precision, Rows};
use hlrc::plan::lower::{KvFormat, Options, lower};
use hlrc::plan::pack::{Sink, pack};
use hlrc::plan::{Plan, Program, Target, Value, kernels};
use hlrc::runtime::bind::{Addresses, Argument, bind};
use hlrc::runtime::{Device, PlanModel, RuntimeError};
use hlrc::store::Reader;
use hlrc::weights::FileCache;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

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
struct Emulated {
    plan: Arc<Plan>,
    blob: Aligned,
    persistent: Aligned,
    arena: Aligned,
    compiled: HashMap<usize, Kernel>,
    schedule: Schedule,
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
    fn new(plan: Arc<Plan>, blob: &[u8], schedule: Schedule) -> Self {
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
    fn compile(&mut self) -> bool {
        for (index, variant) in self.plan.kernels.iter().enumerate() {
            let defines: Vec<(&str, usize)> = variant
                .defines
                .iter()
                .map(|(k, v)| (k.as_str(), *v as usize))
                .collect();
            let Some(kernel) = Kernel::compile(&variant.kernel, &defines) else {
                return false;
            };
            self.compiled.insert(index, kernel);
        }
        true
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
            let shape = Shape {
                grid: launch.grid,
                block: launch.block,
                shared_bytes: u64::from(launch.shared_bytes),
                // Blocks of the fused linear wait for each other; others are run in smaller groups.
                resident: if plan.kernels[launch.variant].kernel == "fused_linear" {
                    blocks
                } else {
                    16
                },
            };
            // SAFETY: the regions are this device's memory, and one launch runs at a time.
            let done = unsafe {
                self.compiled[&launch.variant].call(shape, &regions, &slots, self.schedule)
            };
            done.unwrap_or_else(|e| panic!("{}: {e}", launch.name));
        }
        Ok(())
    }
}

/// A card so small that emulation is quick, with the limits of consumer cards.
fn target() -> Target {
    let mut target = Target::named("sm_89").unwrap_or_else(|e| panic!("{e}"));
    target.sms = 2;
    target
}

/// Greedy tokens behind a prompt, from a plan in emulation and from the executor.
fn check(pipeline: &str, kv: KvFormat, exact: bool, made: usize, schedule: Schedule) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("model.hlrc");
    let mut command = Command::new(env!("CARGO_BIN_EXE_hlrc-opt"));
    command
        .args(["-q", "tests/fixtures/stories260K", "-p", pipeline, "-o"])
        .arg(&path);
    let output = command.output().expect("started");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let module = hlrc::cli::load::executable(Path::new(&path))
        .unwrap_or_else(|e| panic!("{e}"))
        .module;
    let options = Options {
        context: Some(64),
        chunk: 8,
        kv,
        exact,
        ..Options::new(target())
    };
    let files = FileCache::new();
    let lowered = lower(&module, &options).unwrap_or_else(|e| panic!("{e}"));
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
    let mut device = Emulated::new(plan.clone(), &blob, schedule);
    if !device.compile() {
        return;
    }
    let mut model = PlanModel::new(plan.clone(), device);
    model.assign_pages().unwrap_or_else(|e| panic!("{e}"));
    let precision = if exact {
        Precision::Exact
    } else {
        Precision::Int8
    };
    let options = ExecOptions {
        threads: 2,
        precision,
        ..ExecOptions::default()
    };
    let engine = Engine::new(&module, &files, &options).unwrap_or_else(|e| panic!("{e}"));
    let mut state = engine.state(1);
    let mut next: Vec<u32> = vec![1, 403, 407, 261, 378];
    for step in 0..made {
        let mut want = Vec::new();
        let done = engine.forward(&mut state, &next, Rows::Last, &mut |_, row| {
            row.clone_into(&mut want);
            ControlFlow::Continue(())
        });
        done.unwrap_or_else(|e| panic!("{e}"));
        let have = model.advance(&next).unwrap_or_else(|e| panic!("{e}"));
        let largest = |row: &[f32]| {
            (0..row.len())
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .expect("logits")
        };
        let (a, b) = (largest(have), largest(&want));
        let distance: f32 = have
            .iter()
            .zip(&want)
            .map(|(a, b)| (a - b).powi(2))
            .sum::<f32>()
            .sqrt();
        let size: f32 = want.iter().map(|v| v * v).sum::<f32>().sqrt();
        let limit = if exact && kv == KvFormat::F16 {
            3e-3
        } else {
            3e-2
        };
        assert!(
            distance <= limit * size,
            "{pipeline}, step {step}: logits differ by {:e}",
            distance / size
        );
        assert_eq!(a, b, "{pipeline}, step {step}");
        next = vec![b as u32];
    }
}

#[test]
fn stories_in_emulation_give_the_executors_tokens() {
    check("int4", KvFormat::F16, true, 6, Schedule::Forward);
    check(
        "lowrank,outlier,int4",
        KvFormat::Q8,
        false,
        3,
        Schedule::Random(7),
    );
}
