//! Text to module: types and attributes.

use super::cursor::Cursor;
use super::parse::{Parser, Result};
use crate::ir::{Attr, Attrs, Dim, Float, TensorType, Type};
use crate::weights::DType;

impl Parser {
    pub(super) fn dtype(&mut self, c: &mut Cursor<'_>) -> Result<DType> {
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
