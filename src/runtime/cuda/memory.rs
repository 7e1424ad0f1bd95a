//! A plan's memory on the device: weights, persistent buffers, one arena.

use super::{Gpu, RuntimeError, driver};
use crate::plan::{Buffer, Plan, Program, aligned};
use crate::runtime::bind::Addresses;
use crate::runtime::made_up;
use cudarc::driver::{CudaSlice, DevicePtr, PinnedHostSlice, result};
use std::collections::HashMap;

/// Bytes of weights that are copied at a time, of which two parts are under way.
const PART: usize = 32 << 20;

/// Device memory of a plan.
pub(super) struct Memory {
    /// First addresses of weights' sections, by `weight/section`.
    sections: HashMap<String, u64>,
    persistent: HashMap<String, (u64, u64)>,
    arena: u64,
    // Held for as long as addresses are used.
    _weights: CudaSlice<u8>,
    _buffers: CudaSlice<u8>,
    _arena: CudaSlice<u8>,
}

impl Addresses for Memory {
    fn buffer(&self, program: &Program, name: &str) -> Option<u64> {
        match program.buffer(name) {
            Some(buffer) => Some(self.arena + buffer.offset),
            None => self.persistent.get(name).map(|(at, _)| *at),
        }
    }

    fn section(&self, weight: &str, section: &str) -> Option<u64> {
        self.sections.get(&format!("{weight}/{section}")).copied()
    }
}

fn allocate(gpu: &Gpu, bytes: u64, what: &str) -> Result<(CudaSlice<u8>, u64), RuntimeError> {
    let bytes = usize::try_from(bytes.max(256)).unwrap_or(usize::MAX);
    let slice = gpu
        .stream
        .alloc_zeros::<u8>(bytes)
        .map_err(driver(format!("allocating {bytes} bytes for {what}")))?;
    let address = slice.device_ptr(&gpu.stream).0;
    Ok((slice, address))
}

impl Memory {
    /// Allocates everything, zeroed, and streams the weights of `blob` in, made-up ones without it.
    pub(super) fn new(gpu: &Gpu, plan: &Plan, blob: Option<&[u8]>) -> Result<Self, RuntimeError> {
        let needed = plan.device_bytes();
        let (free, _) = gpu.memory()?;
        if needed > free {
            return Err(RuntimeError::Memory {
                device: gpu.name.clone(),
                needed_bytes: needed,
                free_bytes: free,
            });
        }
        let weights = plan.weight_bytes(crate::plan::Place::Device);
        let (weights_slice, base) = allocate(gpu, weights, "weights")?;
        let end = |b: &Buffer| b.offset.saturating_add(aligned(b.bytes));
        let buffers = plan.persistent.iter().map(end).max().unwrap_or(0);
        let (buffers_slice, buffers_at) = allocate(gpu, buffers, "caches and inputs")?;
        let arena = plan
            .programs
            .iter()
            .map(|p| p.arena_bytes)
            .max()
            .unwrap_or(0);
        let (arena_slice, arena_at) = allocate(gpu, arena, "activations")?;
        let sections = upload(gpu, plan, blob, base)?;
        let place = |b: &Buffer| (b.name.clone(), (buffers_at + b.offset, b.bytes));
        Ok(Self {
            sections,
            persistent: plan.persistent.iter().map(place).collect(),
            arena: arena_at,
            _weights: weights_slice,
            _buffers: buffers_slice,
            _arena: arena_slice,
        })
    }

    fn place(&self, buffer: &str, bytes: usize) -> Result<u64, RuntimeError> {
        let found = self.persistent.get(buffer);
        let (at, size) = found
            .ok_or_else(|| RuntimeError::broken(buffer, "is no persistent buffer of the plan"))?;
        if bytes as u64 > *size {
            return Err(RuntimeError::broken(
                buffer,
                format!("holds {size} bytes, not {bytes}"),
            ));
        }
        Ok(*at)
    }

    pub(super) fn write(&self, gpu: &Gpu, buffer: &str, bytes: &[u8]) -> Result<(), RuntimeError> {
        let at = self.place(buffer, bytes.len())?;
        // SAFETY: `place` has checked the range. Pageable memory is copied before the call returns.
        unsafe { result::memcpy_htod_async(at, bytes, gpu.stream.cu_stream()) }
            .map_err(driver(format!("writing {buffer}")))
    }

    pub(super) fn read(
        &self,
        gpu: &Gpu,
        buffer: &str,
        bytes: &mut [u8],
    ) -> Result<(), RuntimeError> {
        let at = self.place(buffer, bytes.len())?;
        // SAFETY: `place` has checked the range; the copy has ended before `bytes` is used.
        unsafe { result::memcpy_dtoh_async(bytes, at, gpu.stream.cu_stream()) }
            .map_err(driver(format!("reading {buffer}")))?;
        gpu.wait(&format!("reading {buffer}"))
    }
}

/// Copies the sections of device weights through pinned memory, reading the next part of the mapped
/// file while the last is on its way.
fn upload(
    gpu: &Gpu,
    plan: &Plan,
    blob: Option<&[u8]>,
    base: u64,
) -> Result<HashMap<String, u64>, RuntimeError> {
    let mut places = HashMap::new();
    let pattern = match blob {
        Some(_) => Vec::new(),
        None => made_up::pattern(PART),
    };
    let mut staging = Staging::new(gpu)?;
    let mut at = base;
    for weight in plan
        .weights
        .iter()
        .filter(|w| w.place == crate::plan::Place::Device)
    {
        for section in &weight.sections {
            let name = format!("{}/{}", weight.name, section.name);
            let beyond =
                || RuntimeError::broken(&name, "lies beyond the end of the packed weights");
            let len = usize::try_from(section.bytes).map_err(|_| beyond())?;
            match blob {
                Some(blob) => {
                    let start = usize::try_from(section.offset).ok();
                    let bytes = start.and_then(|start| blob.get(start..start.checked_add(len)?));
                    staging.all(gpu, at, bytes.ok_or_else(beyond)?)?;
                }
                None => match made_up::table(weight, section)? {
                    Some(table) => staging.all(gpu, at, &table)?,
                    None => {
                        for start in (0..len).step_by(PART) {
                            let part = &pattern[..PART.min(len - start)];
                            staging.copy(gpu, at + start as u64, part)?;
                        }
                    }
                },
            }
            places.insert(name, at);
            at += aligned(section.bytes);
        }
    }
    gpu.wait("copying weights")?;
    Ok(places)
}

/// Two parts of pinned memory, used in turns.
struct Staging {
    parts: [PinnedHostSlice<u8>; 2],
    done: [Option<cudarc::driver::CudaEvent>; 2],
    next: usize,
}

impl Staging {
    fn new(gpu: &Gpu) -> Result<Self, RuntimeError> {
        // SAFETY: every byte is written before it is copied to the device.
        let make = || {
            unsafe { gpu.context.alloc_pinned::<u8>(PART) }
                .map_err(driver("allocating pinned memory"))
        };
        Ok(Self {
            parts: [make()?, make()?],
            done: [None, None],
            next: 0,
        })
    }

    fn all(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<(), RuntimeError> {
        let parts = bytes.chunks(PART).enumerate();
        let mut parts = parts.map(|(i, part)| (to + (i * PART) as u64, part));
        parts.try_for_each(|(to, part)| self.copy(gpu, to, part))
    }

    /// At most `PART` bytes.
    fn copy(&mut self, gpu: &Gpu, to: u64, bytes: &[u8]) -> Result<(), RuntimeError> {
        let doing = "copying weights";
        let turn = self.next;
        self.next = 1 - turn;
        if let Some(event) = self.done[turn].take() {
            event.synchronize().map_err(driver(doing))?;
        }
        let part = self.parts[turn].as_mut_slice().map_err(driver(doing))?;
        let part = &mut part[..bytes.len()];
        part.copy_from_slice(bytes);
        // SAFETY: the destination is within the allocation for weights; the part is not written again
        // before its event.
        unsafe { result::memcpy_htod_async(to, part, gpu.stream.cu_stream()) }
            .map_err(driver(doing))?;
        self.done[turn] = Some(gpu.stream.record_event(None).map_err(driver(doing))?);
        Ok(())
    }
}
