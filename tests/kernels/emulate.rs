//! Launches a kernel in emulation and reads what it did.

#![allow(unsafe_code)] // a shared library is loaded and called

use crate::toolchain;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::Path;

/// Shared memory of a block on consumer cards, bytes.
const SHARED_LIMIT: u64 = 101_376;

/// `HlrcEmuBuffer` of `kernels/emu/launch.h`.
#[repr(C)]
struct RawBuffer {
    name: *const c_char,
    base: *mut c_void,
    bytes: u64,
    writable: u64,
    loaded: u64,
    stored: u64,
    loaded_unique: u64,
    stored_unique: u64,
    sectors_by_block: u64,
}

/// `HlrcEmuLaunch` of `kernels/emu/launch.h`.
#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    block: [u32; 3],
    dynamic_shared: u64,
    shared_limit: u64,
    schedule: u32,
    resident: u32,
    seed: u64,
    buffers: *mut RawBuffer,
    buffer_count: u64,
    static_shared: u64,
    barriers: u64,
    switches: u64,
    error: [c_char; 1024],
}

type Run = unsafe extern "C" fn(*mut RawLaunch, *const *const c_void) -> i32;

/// The order in which threads, warps and blocks run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Schedule {
    Forward,
    Reverse,
    Random(u64),
}

/// The schedules of an ordinary case.
pub(crate) const SCHEDULES: [Schedule; 3] =
    [Schedule::Forward, Schedule::Reverse, Schedule::Random(1)];

/// A compiled kernel.
pub(crate) struct Kernel {
    run: Run,
    name: String,
    _library: libloading::Library,
}

/// Plain numbers that buffers hold.
pub(crate) trait Number: Copy {}
impl Number for f32 {}
impl Number for i32 {}
impl Number for u32 {}
impl Number for u16 {}
impl Number for i8 {}
impl Number for u8 {}

fn bytes_of<T: Number>(values: &[T]) -> Vec<u8> {
    // SAFETY: numbers have no padding, and any byte is initialised.
    let bytes = unsafe {
        std::slice::from_raw_parts(values.as_ptr().cast::<u8>(), std::mem::size_of_val(values))
    };
    bytes.to_vec()
}

enum Argument {
    Buffer(usize),
    Null,
    Int(i32),
    Float(f32),
}

struct Buffer {
    name: CString,
    bytes: Vec<u8>,
    writable: bool,
}

/// A launch: dimensions, and arguments in the order of the ABI.
pub(crate) struct Launch {
    grid: [u32; 3],
    block: u32,
    shared: u64,
    resident: u32,
    arguments: Vec<Argument>,
    buffers: Vec<Buffer>,
}

/// Byte of outputs before a launch: NaN in floats, −1 in integers.
const POISON: u8 = 0xff;
/// Alignment of buffers, as in an arena.
const ALIGN: usize = 256;

impl Launch {
    pub(crate) fn new(grid: [usize; 3], block: usize) -> Self {
        Self {
            grid: grid.map(|n| u32::try_from(n).expect("blocks")),
            block: u32::try_from(block).expect("threads"),
            shared: 0,
            resident: 32,
            arguments: Vec::new(),
            buffers: Vec::new(),
        }
    }

    /// Dynamic shared memory, bytes.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes as u64;
        self
    }

    /// Blocks that run at a time.
    pub(crate) fn resident(mut self, blocks: u32) -> Self {
        self.resident = blocks;
        self
    }

    fn buffer(mut self, name: &str, bytes: Vec<u8>, writable: bool) -> Self {
        self.arguments.push(Argument::Buffer(self.buffers.len()));
        self.buffers.push(Buffer {
            name: CString::new(name).expect("a name"),
            bytes,
            writable,
        });
        self
    }

    /// What the kernel only reads.
    pub(crate) fn input<T: Number>(self, name: &str, values: &[T]) -> Self {
        self.buffer(name, bytes_of(values), false)
    }

    /// What it reads and writes.
    pub(crate) fn in_out<T: Number>(self, name: &str, values: &[T]) -> Self {
        self.buffer(name, bytes_of(values), true)
    }

    /// What it writes; poisoned at first.
    pub(crate) fn output<T: Number>(self, name: &str, count: usize) -> Self {
        let bytes = vec![POISON; count * std::mem::size_of::<T>()];
        self.buffer(name, bytes, true)
    }

    /// A buffer that this variant does not use.
    pub(crate) fn null(mut self) -> Self {
        self.arguments.push(Argument::Null);
        self
    }

    /// Several of those.
    pub(crate) fn nulls(self, count: usize) -> Self {
        (0..count).fold(self, |launch, _| launch.null())
    }

    /// Integers, by value.
    pub(crate) fn ints(mut self, values: &[usize]) -> Self {
        let int = |&v: &usize| Argument::Int(i32::try_from(v).expect("an i32"));
        self.arguments.extend(values.iter().map(int));
        self
    }

    /// Floats, by value.
    pub(crate) fn floats(mut self, values: &[f32]) -> Self {
        self.arguments
            .extend(values.iter().map(|&v| Argument::Float(v)));
        self
    }
}

/// Dimensions of a launch.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) grid: [u32; 3],
    pub(crate) block: u32,
    pub(crate) shared_bytes: u64,
    /// Blocks that run at a time.
    pub(crate) resident: u32,
}

/// Memory that a kernel may use.
pub(crate) struct Region {
    pub(crate) name: String,
    pub(crate) base: *mut u8,
    pub(crate) bytes: usize,
    pub(crate) writable: bool,
}

/// What a launch left.
pub(crate) struct Outcome {
    buffers: Vec<(String, Vec<u8>, Traffic)>,
}

/// Bytes that moved.
#[derive(Clone, Copy, Debug)]
#[allow(dead_code)] // tests of single kernels read some of them
pub(crate) struct Traffic {
    /// That threads loaded, repeats included.
    pub(crate) loaded: u64,
    /// That were loaded at least once.
    pub(crate) loaded_unique: u64,
    /// That threads stored.
    pub(crate) stored: u64,
    /// That were stored at least once.
    pub(crate) stored_unique: u64,
    /// Sectors of 32 bytes, once for each block that loads them.
    pub(crate) sectors_by_block: u64,
}

impl Outcome {
    fn find(&self, name: &str) -> &(String, Vec<u8>, Traffic) {
        let found = self.buffers.iter().find(|b| b.0 == name);
        found.unwrap_or_else(|| panic!("no buffer {name}"))
    }

    /// The values of a buffer.
    pub(crate) fn get<T: Number>(&self, name: &str) -> Vec<T> {
        let bytes = &self.find(name).1;
        let size = std::mem::size_of::<T>();
        let value = |b: &[u8]| {
            // SAFETY: `b` has the size of T, for which any bits are a number.
            unsafe { b.as_ptr().cast::<T>().read_unaligned() }
        };
        bytes.chunks_exact(size).map(value).collect()
    }

    /// What moved from and to a buffer.
    pub(crate) fn traffic(&self, name: &str) -> Traffic {
        self.find(name).2
    }
}

impl Kernel {
    /// Compiles `kernels/NAME.cu` with these defines; `None`, with a message, without a compiler.
    pub(crate) fn compile(name: &str, defines: &[(&str, usize)]) -> Option<Self> {
        let source = Path::new("kernels").join(name).with_extension("cu");
        let defines: Vec<String> = defines.iter().map(|(k, v)| format!("-D{k}={v}")).collect();
        Self::compile_source(name, &source, &defines)
    }

    /// Compiles a source of another place.
    pub(crate) fn compile_source(name: &str, source: &Path, defines: &[String]) -> Option<Self> {
        let path = toolchain::shared_library(name, source, defines)?;
        // SAFETY: the library is what was just compiled; it has no initialisers that touch anything.
        let library = unsafe { libloading::Library::new(&path) }.expect("loaded");
        // SAFETY: HLRC_EMU_EXPORT declares it so.
        let run = unsafe {
            *library
                .get::<Run>(b"hlrc_emu_run\0")
                .expect("HLRC_EMU_EXPORT")
        };
        Some(Self {
            run,
            name: name.to_string(),
            _library: library,
        })
    }

    /// Runs it on fresh copies of the launch's buffers.
    pub(crate) fn run(&self, launch: &Launch, schedule: Schedule) -> Result<Outcome, String> {
        // Aligned copies with poisoned surroundings.
        let pad = |n: usize| n.next_multiple_of(ALIGN) + 2 * ALIGN;
        let aligned = |b: &Buffer| {
            let mut room = vec![POISON; pad(b.bytes.len()) + ALIGN];
            let start = ALIGN + room.as_ptr().align_offset(ALIGN);
            room[start..start + b.bytes.len()].copy_from_slice(&b.bytes);
            (room, start)
        };
        let mut rooms: Vec<_> = launch.buffers.iter().map(aligned).collect();
        let named = launch.buffers.iter().zip(&mut rooms);
        let regions: Vec<Region> = named
            .map(|(b, (room, start))| Region {
                name: b.name.to_string_lossy().into_owned(),
                base: room[*start..].as_mut_ptr(),
                bytes: b.bytes.len(),
                writable: b.writable,
            })
            .collect();
        let slots = launch.arguments.iter().map(|a| match a {
            Argument::Buffer(i) => (regions[*i].base as u64).to_ne_bytes(),
            Argument::Null => [0; 8],
            Argument::Int(v) => u64::from(v.cast_unsigned()).to_le_bytes(),
            Argument::Float(v) => u64::from(v.to_bits()).to_le_bytes(),
        });
        let slots: Vec<[u8; 8]> = slots.collect();
        let shape = Shape {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared,
            resident: launch.resident,
        };
        // SAFETY: the regions are the copies above, which live until the end.
        let traffic = unsafe { self.call(shape, &regions, &slots, schedule) }?;
        let read = |((b, (room, start)), traffic): ((&Buffer, &(Vec<u8>, usize)), Traffic)| {
            let bytes = room[*start..start + b.bytes.len()].to_vec();
            (b.name.to_string_lossy().into_owned(), bytes, traffic)
        };
        let buffers = launch.buffers.iter().zip(&rooms).zip(traffic);
        Ok(Outcome {
            buffers: buffers.map(read).collect(),
        })
    }

    /// Runs it on memory as it is; arguments in ABI order, each in 8 bytes.
    ///
    /// # Safety
    /// Regions are memory that nothing else uses meanwhile.
    pub(crate) unsafe fn call(
        &self,
        shape: Shape,
        regions: &[Region],
        arguments: &[[u8; 8]],
        schedule: Schedule,
    ) -> Result<Vec<Traffic>, String> {
        let names = regions.iter().map(|r| CString::new(r.name.as_str()));
        let names: Vec<CString> = names.map(|n| n.expect("a name")).collect();
        let raw = |(r, name): (&Region, &CString)| RawBuffer {
            name: name.as_ptr(),
            base: r.base.cast(),
            bytes: r.bytes as u64,
            writable: u64::from(r.writable),
            loaded: 0,
            stored: 0,
            loaded_unique: 0,
            stored_unique: 0,
            sectors_by_block: 0,
        };
        let mut raw: Vec<RawBuffer> = regions.iter().zip(&names).map(raw).collect();
        let pointers: Vec<*const c_void> = arguments.iter().map(|s| s.as_ptr().cast()).collect();
        let (number, seed) = match schedule {
            Schedule::Forward => (0, 1),
            Schedule::Reverse => (1, 1),
            Schedule::Random(seed) => (2, seed),
        };
        let mut call = RawLaunch {
            grid: shape.grid,
            block: [shape.block, 1, 1],
            dynamic_shared: shape.shared_bytes,
            shared_limit: SHARED_LIMIT,
            schedule: number,
            resident: shape.resident,
            seed,
            buffers: raw.as_mut_ptr(),
            buffer_count: raw.len() as u64,
            static_shared: 0,
            barriers: 0,
            switches: 0,
            error: [0; 1024],
        };
        // SAFETY: the structs have C's layout; arguments outlive the call; accesses beyond the
        // regions end the launch before they happen.
        let failed = unsafe { (self.run)(&raw mut call, pointers.as_ptr()) } != 0;
        if failed {
            // SAFETY: the runtime ends its message with 0.
            let message = unsafe { CStr::from_ptr(call.error.as_ptr()) };
            let message = message.to_string_lossy();
            return Err(format!("{} ({schedule:?}): {message}", self.name));
        }
        let traffic = |raw: &RawBuffer| Traffic {
            loaded: raw.loaded,
            loaded_unique: raw.loaded_unique,
            stored: raw.stored,
            stored_unique: raw.stored_unique,
            sectors_by_block: raw.sectors_by_block,
        };
        Ok(raw.iter().map(traffic).collect())
    }

    /// Runs it under every schedule; `check` sees each outcome.
    pub(crate) fn run_all(&self, launch: &Launch, mut check: impl FnMut(&Outcome)) {
        for schedule in SCHEDULES {
            let outcome = self.run(launch, schedule).unwrap_or_else(|e| panic!("{e}"));
            check(&outcome);
        }
    }
}
