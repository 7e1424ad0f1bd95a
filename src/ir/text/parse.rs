//! Text to module: the frame (module, weights, graphs) and names.

use std::collections::HashMap;

use super::cursor::Cursor;
use super::parse_storage::storage;
use crate::ir::{Graph, Module, Operand, Region, Type, ValueId, Weight, WeightId};

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
    let mut parser = Parser::new();
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

/// The type that `text` describes, as `f32[B,S,576]`.
///
/// # Errors
/// [`ParseError`] with the column of the first mistake.
pub fn parse_type(text: &str) -> Result<Type> {
    let mut c = Cursor::new(text);
    let ty = Parser::new().ty(&mut c)?;
    match c.at_end() {
        true => Ok(ty),
        false => Err(c.error("text after the type's end")),
    }
}

pub(super) struct Parser {
    pub(super) module: Module,
    weight_ids: HashMap<String, WeightId>,
    pub(super) graph: Graph,
    scopes: Vec<HashMap<String, ValueId>>,
    pub(super) depth: usize,
}

impl Parser {
    fn new() -> Self {
        Self {
            module: Module::default(),
            weight_ids: HashMap::new(),
            graph: Graph::default(),
            scopes: Vec::new(),
            depth: 0,
        }
    }

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

    pub(super) fn deeper(&mut self, c: &Cursor<'_>) -> Result<()> {
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
