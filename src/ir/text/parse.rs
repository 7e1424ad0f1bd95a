//! Text to module: the frame (module, weights, graphs), types and attributes.

use std::collections::HashMap;
use std::sync::Arc;

use super::cursor::Cursor;
use crate::ir::{
    Attr, Attrs, Dim, Encoding, Float, Graph, Module, Operand, Region, Storage, Synthetic,
    TensorType, Type, ValueId, Weight, WeightId,
};
use crate::weights::DType;

/// Text that is not a module.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{line}:{column}: {what}\n  | {source_line}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
    /// The line as it stands.
    pub source_line: String,
}

pub(super) type Result<T> = std::result::Result<T, ParseError>;

/// Nesting of regions, types and attributes that the parser follows.
const MAX_DEPTH: usize = 64;

/// The module that `text` describes. Names are resolved; deeper rules are the verifier's.
///
/// # Errors
/// [`ParseError`] with line and column of the first mistake.
pub fn parse(text: &str) -> Result<Module> {
    let mut c = Cursor::new(text);
    c.expect("hlir")?;
    let version: u32 = c.integer()?;
    if version != super::VERSION {
        let known = super::VERSION;
        return Err(c.error(format!(
            "text form {version} is not known; this tool reads {known}"
        )));
    }
    c.expect("module")?;
    let mut parser = Parser {
        module: Module::default(),
        weight_ids: HashMap::new(),
        graph: Graph::default(),
        scopes: Vec::new(),
        depth: 0,
    };
    parser.module.name = c.name()?;
    let attrs = parser.meta(&mut c)?;
    c.expect("{")?;
    loop {
        if c.eat("weight") {
            parser.weight(&mut c)?;
        } else if c.eat("graph") {
            parser.top_graph(&mut c)?;
        } else {
            break;
        }
    }
    c.expect("}")?;
    if !c.at_end() {
        return Err(c.error("text after the module's end"));
    }
    parser.module.meta = attrs;
    Ok(parser.module)
}

pub(super) struct Parser {
    pub(super) module: Module,
    weight_ids: HashMap<String, WeightId>,
    pub(super) graph: Graph,
    scopes: Vec<HashMap<String, ValueId>>,
    depth: usize,
}

impl Parser {
    fn weight(&mut self, c: &mut Cursor<'_>) -> Result<WeightId> {
        c.expect("@")?;
        let at = c.position();
        let name = c.name()?;
        c.expect(":")?;
        let dtype = self.dtype(c)?;
        let mut dims = Vec::new();
        c.list("[", "]", |c| {
            dims.push(c.integer()?);
            Ok(())
        })?;
        c.expect("=")?;
        let storage = storage(c)?;
        let mut sha256 = None;
        if c.eat("sha256") {
            c.expect(":")?;
            sha256 = Some(c.word().to_string());
        }
        let meta = self.meta(c)?;
        let id = self.module.add_weight(Weight {
            name: name.clone(),
            dtype,
            dims,
            storage,
            sha256,
            meta,
        });
        if self.weight_ids.insert(name.clone(), id).is_some() {
            return Err(c.error_at(at, format!("weight @{name} is declared twice")));
        }
        Ok(id)
    }

    fn top_graph(&mut self, c: &mut Cursor<'_>) -> Result<()> {
        c.expect("@")?;
        let name = c.name()?;
        self.graph = Graph::default();
        self.scopes.clear();
        let body = self.region_rest(c, name)?;
        let mut graph = std::mem::take(&mut self.graph);
        graph.body = body;
        self.module.graphs.push(graph);
        Ok(())
    }

    /// `(inputs) -> (outputs) meta { weights ops }`
    fn region_rest(&mut self, c: &mut Cursor<'_>, name: String) -> Result<Region> {
        self.deeper(c)?;
        self.scopes.push(HashMap::new());
        let mut region = Region {
            name,
            ..Region::default()
        };
        c.expect("(")?;
        if !c.eat(")") {
            loop {
                let id = self.define(c)?;
                if c.eat(":") {
                    self.typed(c, Some(id))?;
                }
                region.inputs.push(id);
                if c.eat(")") {
                    break;
                }
                c.expect(",")?;
            }
        }
        c.expect("->")?;
        let mut outputs = Vec::new();
        c.list("(", ")", |c| {
            outputs.push(OutputName::parse(c)?);
            Ok(())
        })?;
        region.meta = self.meta(c)?;
        c.expect("{")?;
        while c.eat("weight") {
            let id = self.weight(c)?;
            region.weights.push(id);
        }
        while !c.eat("}") {
            let op = self.op(c)?;
            region.ops.push(op);
        }
        for output in outputs {
            let operand = self.resolve(c, output)?;
            region.outputs.push(operand);
        }
        self.scopes.pop();
        self.depth -= 1;
        Ok(region)
    }

    pub(super) fn region(&mut self, c: &mut Cursor<'_>) -> Result<Region> {
        let name = c.name()?;
        self.region_rest(c, name)
    }

    fn deeper(&mut self, c: &Cursor<'_>) -> Result<()> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(c.error(format!("nested deeper than {MAX_DEPTH}")));
        }
        Ok(())
    }

    /// A value where it is made: `%name` or `%3`.
    pub(super) fn define(&mut self, c: &mut Cursor<'_>) -> Result<ValueId> {
        let at = c.position();
        c.expect("%")?;
        let (key, name) = value_key(c)?;
        let id = self.graph.add_value(&name, None);
        let scope = self.scopes.last_mut();
        if scope.is_some_and(|s| s.insert(key.clone(), id).is_some()) {
            return Err(c.error_at(at, format!("value %{key} is made twice here")));
        }
        Ok(id)
    }

    /// `type meta{…}` or `? meta{…}` of the value made.
    pub(super) fn typed(&mut self, c: &mut Cursor<'_>, id: Option<ValueId>) -> Result<()> {
        let ty = if c.eat("?") { None } else { Some(self.ty(c)?) };
        let meta = self.meta(c)?;
        if let Some(value) = id.and_then(|id| self.graph.values.get_mut(id.index())) {
            value.ty = ty;
            value.meta = meta;
        }
        Ok(())
    }

    pub(super) fn operand(&mut self, c: &mut Cursor<'_>) -> Result<Operand> {
        let output = OutputName::parse(c)?;
        self.resolve(c, output)
    }

    fn resolve(&mut self, c: &Cursor<'_>, name: OutputName) -> Result<Operand> {
        match name {
            OutputName::None => Ok(Operand::None),
            OutputName::Value(key, at) => {
                let found = self.scopes.iter().rev().find_map(|s| s.get(&key));
                let missing =
                    || c.error_at(at, format!("value %{key} is not made before this use"));
                found.copied().map(Operand::Value).ok_or_else(missing)
            }
            OutputName::Weight(name, at) => {
                let missing = || {
                    c.error_at(
                        at,
                        format!("weight @{name} is not declared before this use"),
                    )
                };
                let found = self.weight_ids.get(&name).copied();
                found.map(Operand::Weight).ok_or_else(missing)
            }
        }
    }

    pub(super) fn weight_ref(&mut self, c: &mut Cursor<'_>) -> Result<WeightId> {
        let at = c.position();
        match self.operand(c)? {
            Operand::Weight(id) => Ok(id),
            _ => Err(c.error_at(at, "expected a weight, `@name`")),
        }
    }

    fn dtype(&mut self, c: &mut Cursor<'_>) -> Result<DType> {
        let at = c.position();
        let word = c.word();
        word.parse()
            .map_err(|_| c.error_at(at, format!("`{word}` is no element type")))
    }

    pub(super) fn ty(&mut self, c: &mut Cursor<'_>) -> Result<Type> {
        self.deeper(c)?;
        let ty = self.ty_inner(c);
        self.depth -= 1;
        ty
    }

    fn ty_inner(&mut self, c: &mut Cursor<'_>) -> Result<Type> {
        if c.eat("none") {
            return Ok(Type::None);
        }
        let wrapped = |p: &mut Self, c: &mut Cursor<'_>| -> Result<Box<Type>> {
            c.expect("<")?;
            let inner = p.ty(c)?;
            c.expect(">")?;
            Ok(Box::new(inner))
        };
        if c.eat("seq") {
            return Ok(Type::Seq(wrapped(self, c)?));
        }
        if c.eat("optional") {
            return Ok(Type::Optional(wrapped(self, c)?));
        }
        if c.eat("sparse") {
            c.expect("<")?;
            let inner = self.tensor_type(c)?;
            c.expect(">")?;
            return Ok(Type::Sparse(inner));
        }
        if c.eat("map") {
            c.expect("<")?;
            let key = self.dtype(c)?;
            c.expect(",")?;
            let value = self.ty(c)?;
            c.expect(">")?;
            return Ok(Type::Map(key, Box::new(value)));
        }
        if c.eat("opaque") {
            c.expect("<")?;
            let domain = c.name()?;
            c.expect(",")?;
            let name = c.name()?;
            c.expect(">")?;
            return Ok(Type::Opaque(domain, name));
        }
        self.tensor_type(c).map(Type::Tensor)
    }

    fn tensor_type(&mut self, c: &mut Cursor<'_>) -> Result<TensorType> {
        let dtype = self.dtype(c)?;
        c.expect("[")?;
        if c.eat("*") {
            c.expect("]")?;
            return Ok(TensorType { dtype, shape: None });
        }
        let mut dims = Vec::new();
        if !c.eat("]") {
            loop {
                dims.push(dim(c)?);
                if c.eat("]") {
                    break;
                }
                c.expect(",")?;
            }
        }
        Ok(TensorType {
            dtype,
            shape: Some(dims),
        })
    }

    /// `meta{…}`, empty where there is none.
    pub(super) fn meta(&mut self, c: &mut Cursor<'_>) -> Result<Attrs> {
        if c.eat("meta") {
            self.dict(c)
        } else {
            Ok(Attrs::new())
        }
    }

    pub(super) fn dict(&mut self, c: &mut Cursor<'_>) -> Result<Attrs> {
        let mut attrs = Attrs::new();
        c.expect("{")?;
        if c.eat("}") {
            return Ok(attrs);
        }
        loop {
            let name = c.name()?;
            c.expect("=")?;
            let value = self.attr(c)?;
            attrs.0.push((name, value));
            if c.eat("}") {
                return Ok(attrs);
            }
            c.expect(",")?;
        }
    }

    fn attr(&mut self, c: &mut Cursor<'_>) -> Result<Attr> {
        self.deeper(c)?;
        let attr = self.attr_inner(c);
        self.depth -= 1;
        attr
    }

    fn attr_inner(&mut self, c: &mut Cursor<'_>) -> Result<Attr> {
        match c.peek() {
            Some(b'"') => return Ok(Attr::Str(c.string()?)),
            Some(b'{') => return Ok(Attr::Dict(self.dict(c)?)),
            Some(b'@') => return Ok(Attr::Weight(self.weight_ref(c)?)),
            Some(b'[') => {
                let mut items = Vec::new();
                c.list("[", "]", |c| {
                    items.push(self.attr(c)?);
                    Ok(())
                })?;
                return Ok(Attr::List(items));
            }
            _ => {}
        }
        if c.eat("true") {
            return Ok(Attr::Bool(true));
        }
        if c.eat("false") {
            return Ok(Attr::Bool(false));
        }
        if c.eat("ints") {
            let mut items = Vec::new();
            c.list("[", "]", |c| {
                items.push(c.integer()?);
                Ok(())
            })?;
            return Ok(Attr::Ints(items));
        }
        if c.eat("floats") {
            let mut items = Vec::new();
            c.list("[", "]", |c| {
                items.push(float(c)?);
                Ok(())
            })?;
            return Ok(Attr::Floats(items));
        }
        if c.eat("strings") {
            let mut items = Vec::new();
            c.list("[", "]", |c| {
                items.push(c.string()?);
                Ok(())
            })?;
            return Ok(Attr::Strs(items));
        }
        if c.eat("region") {
            return Ok(Attr::Region(Box::new(self.region(c)?)));
        }
        if c.eat("type") {
            c.expect("(")?;
            let ty = self.ty(c)?;
            c.expect(")")?;
            return Ok(Attr::Type(ty));
        }
        number(c)
    }
}

/// An operand's name, to be resolved when everything before it has been read.
enum OutputName {
    None,
    Value(String, usize),
    Weight(String, usize),
}

impl OutputName {
    fn parse(c: &mut Cursor<'_>) -> Result<Self> {
        let at = c.position();
        if c.eat("_") {
            Ok(OutputName::None)
        } else if c.eat("@") {
            Ok(OutputName::Weight(c.name()?, at))
        } else {
            c.expect("%")?;
            Ok(OutputName::Value(value_key(c)?.0, at))
        }
    }
}

/// Key in the scope, and the value's name (empty for numbered values).
fn value_key(c: &mut Cursor<'_>) -> Result<(String, String)> {
    if c.peek().is_some_and(|b| b.is_ascii_digit()) {
        let number: u32 = c.integer()?;
        return Ok((format!("%{number}"), String::new()));
    }
    let name = c.name()?;
    // `%""` cannot be told from a numbered value, and the printer never writes it.
    if name.is_empty() {
        return Err(c.error("a value's name is not empty"));
    }
    Ok((name.clone(), name))
}

fn dim(c: &mut Cursor<'_>) -> Result<Dim> {
    if c.eat("?") {
        return Ok(Dim::Unknown);
    }
    match c.peek() {
        Some(b) if b.is_ascii_digit() || b == b'-' => Ok(Dim::Known(c.integer()?)),
        _ => Ok(Dim::Symbol(c.name()?)),
    }
}

fn float(c: &mut Cursor<'_>) -> Result<Float> {
    let at = c.position();
    match number(c)? {
        Attr::Float(x) => Ok(x),
        _ => Err(c.error_at(at, "expected a float, with a point or exponent")),
    }
}

/// `3`, `1.5`, `1e-5`, `inf`, `-inf`, `nan(0x7fc00000)`.
fn number(c: &mut Cursor<'_>) -> Result<Attr> {
    let at = c.position();
    let text = c.number();
    if text == "nan" {
        c.expect("(")?;
        let bits = c.offset()?;
        c.expect(")")?;
        let bits = u32::try_from(bits).map_err(|_| c.error_at(at, "NaN has 32 bits"))?;
        return Ok(Attr::Float(Float(f32::from_bits(bits))));
    }
    if let Ok(i) = text.parse::<i64>() {
        return Ok(Attr::Int(i));
    }
    let looks_float = text.contains(['.', 'e', 'E']) || matches!(text, "inf" | "-inf");
    match text.parse::<f32>() {
        Ok(x) if looks_float && !x.is_nan() => Ok(Attr::Float(Float(x))),
        _ => Err(c.error_at(at, "expected an attribute's value")),
    }
}

fn storage(c: &mut Cursor<'_>) -> Result<Storage> {
    if c.eat("concat") {
        let mut parts = Vec::new();
        c.list("(", ")", |c| {
            let at = c.position();
            let part = piece(c)?;
            let part = part.ok_or_else(|| c.error_at(at, "expected file(…) or hex\"…\""))?;
            parts.push(part);
            Ok(())
        })?;
        return Ok(Storage::Concat(parts));
    }
    if let Some(piece) = piece(c)? {
        return Ok(piece);
    }
    if c.eat("synthetic") {
        return synthetic(c).map(Storage::Synthetic);
    }
    c.expect("none")?;
    Ok(Storage::Absent)
}

/// A part of a file, or bytes.
fn piece(c: &mut Cursor<'_>) -> Result<Option<Storage>> {
    for (word, encoding) in [("file", Encoding::Raw), ("varint", Encoding::Varint)] {
        if c.eat(word) {
            c.expect("(")?;
            let path: Arc<str> = c.name()?.into();
            c.expect(",")?;
            let offset = c.offset()?;
            c.expect(",")?;
            let len = c.offset()?;
            c.expect(")")?;
            return Ok(Some(Storage::File {
                path,
                offset,
                len,
                encoding,
            }));
        }
    }
    if c.eat("hex") {
        let at = c.position();
        let digits = c.string()?;
        let nibble = |b: u8| (b as char).to_digit(16).map(|d| d as u8);
        let pairs: Option<Vec<u8>> = digits
            .chunks(2)
            .map(|pair| match pair {
                [high, low] => Some(nibble(*high)? * 16 + nibble(*low)?),
                _ => None,
            })
            .collect();
        let bytes = pairs.ok_or_else(|| c.error_at(at, "expected pairs of hex digits"))?;
        return Ok(Some(Storage::Inline(bytes)));
    }
    Ok(None)
}

fn synthetic(c: &mut Cursor<'_>) -> Result<Synthetic> {
    let mut s = Synthetic {
        seed: 0,
        power: 1.0,
        rank: 32,
        scale: 0.02,
        outliers: 0.0,
    };
    c.list("(", ")", |c| {
        let at = c.position();
        let key = c.word().to_string();
        c.expect("=")?;
        if key == "seed" {
            s.seed = c.integer()?;
            return Ok(());
        }
        if key == "rank" {
            s.rank = c.integer()?;
            return Ok(());
        }
        let value = c.number().parse::<f64>().ok().filter(|x| x.is_finite());
        let value = value.ok_or_else(|| c.error_at(at, "expected a number"))?;
        match key.as_str() {
            "power" => s.power = value,
            "scale" => s.scale = value,
            "outliers" => s.outliers = value,
            _ => return Err(c.error_at(at, "expected seed, power, rank, scale or outliers")),
        }
        Ok(())
    })?;
    Ok(s)
}
