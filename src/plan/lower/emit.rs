//! The plan while it grows: kernel variants, weights with their recipes, persistent buffers, notes.

use std::collections::{BTreeMap, HashMap};

use super::macros::{Slot, SlotInfo};
use super::program::Growing;
use super::scan::Scanned;
use super::{KvFormat, Lowered, Options};
use crate::ir::{Graph, Module};
use crate::plan::model::{aligned, element_bytes};
use crate::plan::pack::recipe::Recipe;
use crate::plan::pack::sizes;
use crate::plan::{
    Buffer, Kv, Note, PACK_VERSION, PLAN_VERSION, PackedWeight, Place, Plan, PlanError, Shape,
    Value, Variant, arena, kernels,
};

pub(super) type Result<T> = std::result::Result<T, PlanError>;

/// What grows.
pub(super) struct Emit<'a> {
    pub(super) module: &'a Module,
    pub(super) graph: &'a Graph,
    pub(super) options: &'a Options,
    pub(super) context: u64,
    pub(super) slots: Vec<SlotInfo>,
    pub(super) variants: Vec<Variant>,
    pub(super) weights: Vec<PackedWeight>,
    pub(super) recipes: Vec<Recipe>,
    known: HashMap<Recipe, usize>,
    pub(super) persistent: Vec<Buffer>,
    pub(super) notes: Vec<Note>,
    /// Counters of blocks that wait for each other, u32 each.
    pub(super) counters: u64,
    pub(super) vocabulary: u64,
    pub(super) logits: Slot,
}

/// Emits all programs.
///
/// # Errors
/// A term that no kernel reads.
pub(super) fn emit(
    module: &Module,
    scanned: Scanned,
    options: &Options,
    context: u32,
) -> Result<Lowered> {
    let Some(graph) = module.graphs.first() else {
        return Err(PlanError::NotLanguageModel(
            "the module has no graph".to_string(),
        ));
    };
    let mut emit = Emit {
        module,
        graph,
        options,
        context: u64::from(context),
        slots: scanned.slots,
        variants: Vec::new(),
        weights: Vec::new(),
        recipes: Vec::new(),
        known: HashMap::new(),
        persistent: Vec::new(),
        notes: Vec::new(),
        counters: 0,
        vocabulary: scanned.vocabulary,
        logits: scanned.logits,
    };
    for (at, text) in scanned.notes {
        emit.notes.push(Note { at, text });
    }
    let chunk = u64::from(options.chunk).clamp(1, emit.context);
    emit.inputs(chunk);
    let programs = vec![
        emit.program(
            &scanned.macros,
            Growing::new("decode", u64::from(options.batch), false),
        )?,
        emit.program(&scanned.macros, Growing::new("prefill", chunk, true))?,
    ];
    emit.persistent("counters", "u32", &[emit.counters.max(1)], Some("zero"));
    let lowered = emit.finish(programs, context, chunk, scanned.hidden);
    Ok(lowered)
}

impl Emit<'_> {
    /// Buffers that the host fills or reads.
    fn inputs(&mut self, chunk: u64) {
        let batch = u64::from(self.options.batch);
        self.persistent("tokens", "i32", &[batch], Some("host"));
        self.persistent("positions", "i32", &[batch], Some("host"));
        self.persistent("prompt", "i32", &[chunk], Some("host"));
        self.persistent("prompt_positions", "i32", &[chunk], Some("host"));
        self.persistent("scalars", "i32", &[3], Some("host"));
        self.persistent("sampling", "f32", &[batch, 3], Some("host"));
        self.persistent("sampling_top_k", "i32", &[batch], Some("host"));
        self.persistent(
            "logits",
            "f32",
            &[batch, self.vocabulary.next_multiple_of(16)],
            None,
        );
        self.persistent("sampled", "i32", &[batch], None);
        if let Some(page) = self.options.page {
            let pages = self.context.div_ceil(u64::from(page.max(1)));
            self.persistent("pages", "i32", &[batch, pages], Some("host"));
        }
    }

    /// A persistent buffer by name; made where it is not there yet.
    pub(super) fn persistent(
        &mut self,
        name: &str,
        dtype: &str,
        dims: &[u64],
        filled: Option<&str>,
    ) -> Value {
        if !self.persistent.iter().any(|b| b.name == name) {
            let elements = dims.iter().fold(1u64, |n, &d| n.saturating_mul(d));
            self.persistent.push(Buffer {
                name: name.to_string(),
                dtype: dtype.to_string(),
                dims: dims.to_vec(),
                bytes: elements.saturating_mul(element_bytes(dtype).unwrap_or(4)),
                offset: 0,
                live: None,
                filled: filled.map(str::to_string),
                place: Place::Device,
            });
        }
        Value::buffer(name)
    }

    /// The index of a variant; all defines of the kernel that are not given are 0.
    pub(super) fn variant(&mut self, kernel: &str, given: &[(&str, i64)]) -> u32 {
        let mut defines = BTreeMap::new();
        let known = kernels::find(kernel);
        for define in known.map(kernels::Kernel::define_list).unwrap_or_default() {
            defines.insert(define.name, 0);
        }
        for (name, value) in given {
            defines.insert((*name).to_string(), *value);
        }
        let variant = Variant {
            kernel: kernel.to_string(),
            abi: known.map_or(0, |k| k.abi),
            defines,
            cubin: None,
        };
        let found = self.variants.iter().position(|v| *v == variant);
        let index = found.unwrap_or_else(|| {
            self.variants.push(variant);
            self.variants.len() - 1
        });
        u32::try_from(index).unwrap_or(u32::MAX)
    }

    /// The name of a packed weight; made where it is not there yet.
    pub(super) fn weight(
        &mut self,
        name: &str,
        pack: &str,
        (rows, cols): (u64, u64),
        parts: Vec<String>,
        recipe: Recipe,
    ) -> Result<String> {
        if let Some(&index) = self.known.get(&recipe) {
            return Ok(self.weights[index].name.clone());
        }
        let taken = |name: &str| self.weights.iter().any(|w| w.name == name);
        let mut unique = name.to_string();
        let mut count = 2;
        while taken(&unique) {
            unique = format!("{name}.{count}");
            count += 1;
        }
        let sections = sizes::sections(self.module, self.graph, &recipe)?;
        self.known.insert(recipe.clone(), self.weights.len());
        self.recipes.push(recipe);
        self.weights.push(PackedWeight {
            place: self.options.place(&unique),
            name: unique.clone(),
            pack: pack.to_string(),
            pack_version: PACK_VERSION,
            rows,
            cols,
            parts,
            sections,
        });
        Ok(unique)
    }

    /// A section of a weight, or null where it has none.
    pub(super) fn section(&self, weight: &str, section: &str) -> Value {
        let found = self.weights.iter().find(|w| w.name == weight);
        match found.and_then(|w| w.section(section)) {
            Some(_) => Value::section(weight, section),
            None => Value::Null,
        }
    }

    /// Bytes of a weight's sections.
    pub(super) fn weight_bytes(&self, weight: &str) -> u64 {
        let found = self.weights.iter().find(|w| w.name == weight);
        found.map_or(0, |w| w.sections.iter().map(|s| s.bytes).sum())
    }

    pub(super) fn note(&mut self, at: &str, text: impl Into<String>) {
        let note = Note {
            at: at.to_string(),
            text: text.into(),
        };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }

    /// Columns of a slot.
    pub(super) fn width(&self, slot: Slot) -> u64 {
        self.slots.get(slot.0).map_or(0, |s| s.width)
    }

    fn finish(
        mut self,
        programs: Vec<crate::plan::Program>,
        context: u32,
        chunk: u64,
        hidden: u64,
    ) -> Lowered {
        let small = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
        let mut at = 0u64;
        for weight in &mut self.weights {
            for section in &mut weight.sections {
                section.offset = at;
                at = at.saturating_add(aligned(section.bytes));
            }
        }
        arena::stack(&mut self.persistent);
        let cached = |b: &&Buffer| b.is_cache();
        let layers = self
            .persistent
            .iter()
            .filter(|b| b.name.ends_with(".k"))
            .count();
        let kv = Kv {
            format: match self.options.kv {
                KvFormat::F16 => "f16".to_string(),
                KvFormat::Q8 => "q8".to_string(),
            },
            page: self.options.page,
            layers: small(layers as u64),
            bytes_per_token: self.kv_bytes_per_token(),
            bytes: self
                .persistent
                .iter()
                .filter(cached)
                .map(|b| aligned(b.bytes))
                .sum(),
        };
        let mut plan = Plan {
            plan_version: PLAN_VERSION,
            model: self.module.name.clone(),
            target: self.options.target.clone(),
            shape: Shape {
                batch: self.options.batch,
                context,
                chunk: small(chunk),
                vocabulary: small(self.vocabulary),
                hidden: small(hidden),
            },
            kernels: self.variants,
            weights: self.weights,
            blob: None,
            kv,
            persistent: self.persistent,
            programs,
            notes: self.notes,
        };
        super::host::host_buffers(&mut plan);
        Lowered {
            plan,
            recipes: self.recipes,
        }
    }

    /// What one more position takes in caches that keep all positions.
    fn kv_bytes_per_token(&self) -> u64 {
        let rows = self.context.max(1) * u64::from(self.options.batch);
        let each = self.persistent.iter().filter(|b| b.is_cache());
        let whole = each.filter(|b| b.dims.iter().take(2).product::<u64>() >= rows);
        whole
            .map(|b| b.bytes / b.dims.iter().take(2).product::<u64>().max(1))
            .sum()
    }
}
