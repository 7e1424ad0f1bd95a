//! Module to text.

use std::fmt::Write;

use super::is_bare;
use crate::ir::{
    Attr, Attrs, Dim, Encoding, Graph, Module, OpRef, Operand, Region, Rotated, Storage,
    TensorType, Turn, Type, ValueId, WeightId,
};

/// What the printed text shows besides the module itself.
#[derive(Default)]
pub struct PrintOptions<'a> {
    /// A comment to print behind an op.
    pub annotate: Option<&'a dyn Fn(OpRef) -> Option<String>>,
    /// Leave out content hashes, so that text does not depend on a processor's rounding.
    pub elide_hashes: bool,
}

/// The text of a module.
pub fn print(module: &Module) -> String {
    print_with(module, &PrintOptions::default())
}

/// The text of a module, with options.
pub fn print_with(module: &Module, options: &PrintOptions<'_>) -> String {
    let mut p = Printer {
        module,
        options,
        out: String::new(),
        indent: 1,
        graph: 0,
        numbers: Vec::new(),
        next: 0,
    };
    let _ = write!(
        p.out,
        "hlir {}\nmodule {}",
        super::VERSION,
        quoted(module.name.as_bytes())
    );
    p.meta(&module.meta, 0);
    p.out.push_str(" {\n");
    p.free_weights();
    for index in 0..module.graphs.len() {
        p.graph(index);
    }
    p.out.push_str("}\n");
    p.out
}

pub(super) struct Printer<'a> {
    pub(super) module: &'a Module,
    pub(super) options: &'a PrintOptions<'a>,
    pub(super) out: String,
    pub(super) indent: usize,
    pub(super) graph: usize,
    numbers: Vec<Option<u32>>,
    next: u32,
}

impl Printer<'_> {
    pub(super) fn line(&mut self) {
        for _ in 0..self.indent {
            self.out.push_str("  ");
        }
    }

    fn free_weights(&mut self) {
        let mut owned = vec![false; self.module.weights.len()];
        for graph in &self.module.graphs {
            let inner = graph.walk();
            let regions = inner
                .iter()
                .filter_map(|&op| graph.op(op))
                .flat_map(|op| op.kind.regions());
            for region in std::iter::once(&graph.body).chain(regions) {
                for w in &region.weights {
                    if let Some(slot) = owned.get_mut(w.index()) {
                        *slot = true;
                    }
                }
            }
        }
        for (index, _) in owned.iter().enumerate().filter(|(_, owned)| !**owned) {
            self.weight_line(WeightId::new(index));
        }
    }

    fn weight_line(&mut self, id: WeightId) {
        let Some(weight) = self.module.weight(id) else {
            return;
        };
        self.line();
        self.out.push_str("weight ");
        self.weight_name(id);
        let _ = write!(self.out, " : {}[{}] = ", weight.dtype, join(&weight.dims));
        self.storage(&weight.storage);
        if let (Some(hash), false) = (&weight.sha256, self.options.elide_hashes) {
            let _ = write!(self.out, " sha256:{hash}");
        }
        self.meta(&weight.meta, 0);
        self.out.push('\n');
    }

    fn storage(&mut self, storage: &Storage) {
        match storage {
            Storage::File {
                path,
                offset,
                len,
                encoding,
            } => {
                let word = match encoding {
                    Encoding::Raw => "file",
                    Encoding::Varint => "varint",
                };
                let path = quoted(path.as_bytes());
                let _ = write!(self.out, "{word}({path}, {offset:#x}, {len})");
            }
            Storage::Inline(bytes) => {
                self.out.push_str("hex\"");
                for b in bytes {
                    let _ = write!(self.out, "{b:02x}");
                }
                self.out.push('"');
            }
            Storage::Synthetic(s) => {
                let _ = write!(
                    self.out,
                    "synthetic(seed={}, power={:?}, scale={:?}, outliers={:?}",
                    s.seed, s.power, s.scale, s.outliers
                );
                if s.rank != 32 {
                    let _ = write!(self.out, ", rank={}", s.rank);
                }
                self.out.push(')');
            }
            Storage::Concat(parts) => {
                self.out.push_str("concat");
                for (index, part) in parts.iter().enumerate() {
                    self.out.push_str(if index == 0 { "(" } else { ", " });
                    self.storage(part);
                }
                self.out.push_str(if parts.is_empty() { "()" } else { ")" });
            }
            Storage::Rotated(rotated) => self.rotated(rotated),
            Storage::Absent => self.out.push_str("none"),
        }
    }

    fn rotated(&mut self, rotated: &Rotated) {
        self.out.push_str("rotated(");
        let mut parts = rotated.parts.iter();
        if let Some(part) = parts.next() {
            self.storage(part);
        }
        let _ = write!(self.out, ", {}", rotated.dtype);
        for (side, turn) in [("rows", &rotated.rows), ("columns", &rotated.columns)] {
            if let Some(Turn {
                block,
                seed,
                repeat,
            }) = turn
            {
                let _ = write!(self.out, ", {side}(block={block}, seed={seed}");
                if let Some(n) = repeat {
                    let _ = write!(self.out, ", repeat={n}");
                }
                self.out.push(')');
            }
        }
        if let (Some(gain), Some(part)) = (rotated.gain, parts.next()) {
            let side = if gain.along_rows { "rows" } else { "columns" };
            let _ = write!(self.out, ", gain({side}, {}, ", gain.dtype);
            self.storage(part);
            self.out.push_str(match gain.unit_offset {
                true => ", unit_offset)",
                false => ")",
            });
        }
        self.out.push(')');
    }

    fn graph(&mut self, index: usize) {
        let graph = &self.module.graphs[index];
        self.graph = index;
        self.numbers = vec![None; graph.values.len()];
        self.next = 0;
        self.line();
        self.out.push_str("graph @");
        self.out.push_str(&bare_or_quoted(&graph.body.name));
        self.region_rest(graph, &graph.body);
        self.out.push('\n');
    }

    /// `(inputs) -> (outputs) meta { … }`
    pub(super) fn region_rest(&mut self, graph: &Graph, region: &Region) {
        self.out.push('(');
        for (i, &input) in region.inputs.iter().enumerate() {
            self.comma(i);
            self.value_name(graph, input);
            self.typed(graph, input, " : ");
        }
        self.out.push_str(") -> (");
        let mark = self.out.len();
        self.out.push(')');
        self.meta(&region.meta, 0);
        self.out.push_str(" {\n");
        self.indent += 1;
        for &w in &region.weights {
            self.weight_line(w);
        }
        for &op in &region.ops {
            self.op(graph, op);
        }
        self.indent -= 1;
        self.line();
        self.out.push('}');
        // Outputs may be unnamed values, whose numbers are known only now.
        let rest = self.out.split_off(mark);
        for (i, output) in region.outputs.iter().enumerate() {
            self.comma(i);
            self.operand(graph, *output);
        }
        self.out.push_str(&rest);
    }

    pub(super) fn comma(&mut self, index: usize) {
        if index > 0 {
            self.out.push_str(", ");
        }
    }

    /// ` : type meta{…}` of a value where it is made; nothing where nothing is known.
    fn typed(&mut self, graph: &Graph, id: ValueId, before: &str) {
        let Some(value) = graph.value(id) else { return };
        if value.ty.is_none() && value.meta.is_empty() {
            return;
        }
        self.out.push_str(before);
        self.type_and_meta(graph, id);
    }

    pub(super) fn type_and_meta(&mut self, graph: &Graph, id: ValueId) {
        let Some(value) = graph.value(id) else { return };
        match &value.ty {
            Some(ty) => self.out.push_str(&type_text(ty)),
            None => self.out.push('?'),
        }
        self.meta(&value.meta, 0);
    }

    pub(super) fn value_name(&mut self, graph: &Graph, id: ValueId) {
        self.out.push('%');
        match graph.value(id) {
            Some(value) if !value.name.is_empty() => {
                self.out.push_str(&bare_or_quoted(&value.name));
            }
            _ => {
                let next = &mut self.next;
                let number = match self.numbers.get_mut(id.index()) {
                    Some(slot) => *slot.get_or_insert_with(|| {
                        *next += 1;
                        *next - 1
                    }),
                    None => u32::MAX,
                };
                let _ = write!(self.out, "{number}");
            }
        }
    }

    pub(super) fn weight_name(&mut self, id: WeightId) {
        self.out.push('@');
        match self.module.weight(id) {
            Some(w) => self.out.push_str(&bare_or_quoted(&w.name)),
            None => {
                let _ = write!(self.out, "{}", id.index());
            }
        }
    }

    pub(super) fn operand(&mut self, graph: &Graph, operand: Operand) {
        match operand {
            Operand::None => self.out.push('_'),
            Operand::Value(id) => self.value_name(graph, id),
            Operand::Weight(id) => self.weight_name(id),
        }
    }

    /// ` meta{…}`, or nothing where there is none.
    pub(super) fn meta(&mut self, meta: &Attrs, graph: usize) {
        if !meta.is_empty() {
            self.out.push_str(" meta");
            self.dict(meta, graph);
        }
    }

    pub(super) fn dict(&mut self, attrs: &Attrs, graph: usize) {
        self.out.push('{');
        for (i, (name, value)) in attrs.iter().enumerate() {
            self.comma(i);
            self.out.push_str(&bare_or_quoted(name));
            self.out.push('=');
            self.attr(value, graph);
        }
        self.out.push('}');
    }

    fn attr(&mut self, attr: &Attr, graph: usize) {
        match attr {
            Attr::Bool(b) => {
                let _ = write!(self.out, "{b}");
            }
            Attr::Int(i) => {
                let _ = write!(self.out, "{i}");
            }
            Attr::Float(x) => self.out.push_str(&float_text(x.0)),
            Attr::Str(s) => self.out.push_str(&quoted(s)),
            Attr::Ints(v) => {
                let _ = write!(self.out, "ints[{}]", join(v));
            }
            Attr::Floats(v) => {
                let texts: Vec<_> = v.iter().map(|x| float_text(x.0)).collect();
                let _ = write!(self.out, "floats[{}]", texts.join(","));
            }
            Attr::Strs(v) => {
                let texts: Vec<_> = v.iter().map(|s| quoted(s)).collect();
                let _ = write!(self.out, "strings[{}]", texts.join(","));
            }
            Attr::List(v) => {
                self.out.push('[');
                for (i, a) in v.iter().enumerate() {
                    self.comma(i);
                    self.attr(a, graph);
                }
                self.out.push(']');
            }
            Attr::Dict(d) => self.dict(d, graph),
            Attr::Weight(w) => self.weight_name(*w),
            Attr::Region(r) => self.region(graph, r),
            Attr::Type(t) => {
                let _ = write!(self.out, "type({})", type_text(t));
            }
        }
    }

    /// `region "name"(…) -> (…) { … }`
    pub(super) fn region(&mut self, graph: usize, region: &Region) {
        let _ = write!(self.out, "region {}", quoted(region.name.as_bytes()));
        let graph = &self.module.graphs[graph];
        self.region_rest(graph, region);
    }
}

fn join<T: ToString>(items: &[T]) -> String {
    let texts: Vec<_> = items.iter().map(T::to_string).collect();
    texts.join(",")
}

pub(super) fn float_text(x: f32) -> String {
    if x.is_nan() {
        format!("nan({:#010x})", x.to_bits())
    } else {
        format!("{x:?}")
    }
}

/// A type as text has it: `f32[B,S,576]`.
pub fn type_text(ty: &Type) -> String {
    match ty {
        Type::Tensor(t) => tensor_text(t),
        Type::Sparse(t) => format!("sparse<{}>", tensor_text(t)),
        Type::Seq(t) => format!("seq<{}>", type_text(t)),
        Type::Optional(t) => format!("optional<{}>", type_text(t)),
        Type::Map(key, t) => format!("map<{key}, {}>", type_text(t)),
        Type::Opaque(domain, name) => format!(
            "opaque<{}, {}>",
            quoted(domain.as_bytes()),
            quoted(name.as_bytes())
        ),
        Type::None => "none".to_string(),
    }
}

fn tensor_text(t: &TensorType) -> String {
    let dims = match &t.shape {
        None => "*".to_string(),
        Some(dims) => {
            let texts: Vec<_> = dims.iter().map(dim_text).collect();
            texts.join(",")
        }
    };
    format!("{}[{dims}]", t.dtype)
}

fn dim_text(dim: &Dim) -> String {
    match dim {
        Dim::Known(n) => n.to_string(),
        Dim::Symbol(s) => bare_or_quoted(s),
        Dim::Unknown => "?".to_string(),
    }
}

pub(super) fn bare_or_quoted(name: &str) -> String {
    if is_bare(name) {
        name.to_string()
    } else {
        quoted(name.as_bytes())
    }
}

/// A string literal: UTF-8 as it is, everything else as escapes, so that any bytes survive.
pub(super) fn quoted(bytes: &[u8]) -> String {
    let mut out = String::with_capacity(bytes.len() + 2);
    out.push('"');
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '"' => out.push_str("\\\""),
                '\\' => out.push_str("\\\\"),
                '\n' => out.push_str("\\n"),
                '\r' => out.push_str("\\r"),
                '\t' => out.push_str("\\t"),
                c if (c as u32) < 0x20 || c as u32 == 0x7f => {
                    let _ = write!(out, "\\x{:02x}", c as u32);
                }
                c => out.push(c),
            }
        }
        for b in chunk.invalid() {
            let _ = write!(out, "\\x{b:02x}");
        }
    }
    out.push('"');
    out
}
