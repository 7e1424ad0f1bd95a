//! How a source wrote a message, where that differs from the canonical form.
//!
//! The canonical form is: ascending field numbers, numeric lists in the form
//! that `onnx.proto` declares, minimal varints, no unknown fields. The IR
//! holds what a message means; a [`Layout`] beside it holds the rest, as a
//! short string, so that a rebuilt message encodes to the source's bytes.
//! [`Layout::between`] finds it, [`Layout::apply`] uses it. Applied to a
//! message that was edited since, it does what still makes sense: fields that
//! are gone are skipped, new ones follow at the end.
//!
//! Text form, items separated by spaces: `5` or `5*3` next occurrences of
//! field 5; `5(…)` next occurrence, a message with a layout of its own;
//! `5~2.3` tag and length (or value) in 2 and 3 bytes; `5u4` and `5p4` next
//! four elements unpacked, packed; `5x4:hex` four elements in exactly these
//! bytes; `+hex` bytes that no field holds; `-5` drop.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::message::{Blob, Field, Message, Value, elements_of, elements_value};
use super::schema::{Kind, Schema};
use super::wire::{Cursor, Width, WireType};

mod text;
pub use text::LayoutParseError;

/// One step of a layout.
#[derive(Debug, Clone, PartialEq)]
enum Item {
    /// The next `count` occurrences of a field, in canonical form.
    Take { number: u32, count: u32 },
    /// The next occurrence, in other widths or with a layout inside.
    Shaped {
        number: u32,
        tag_width: Width,
        width: Width,
        inner: Layout,
    },
    /// The next elements of a repeated numeric field.
    Elements {
        number: u32,
        count: u64,
        packed: bool,
    },
    /// The next elements, in these bytes as long as they mean the same.
    Exact {
        number: u32,
        count: u64,
        bytes: Box<[u8]>,
    },
    /// Bytes that the rebuilt message has no field for.
    Extra { number: u32, bytes: Box<[u8]> },
    /// Occurrences that the rebuilt message has and the source has not.
    Drop { number: u32 },
}

/// The order and encoding of one message's fields.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Layout {
    items: Vec<Item>,
}

/// A field of a message: its table and number.
pub type FieldOf = (&'static Schema, u32);

type Queues<'a> = BTreeMap<u32, VecDeque<&'a Field>>;

fn queues(message: &Message) -> Queues<'_> {
    let mut queues = Queues::new();
    for field in &message.fields {
        queues.entry(field.number).or_default().push_back(field);
    }
    queues
}

fn is_list(value: &Value) -> bool {
    matches!(value, Value::Packed(_) | Value::Run(_))
}

impl Layout {
    /// What `rebuilt` lacks to encode as `source`; `None` if nothing.
    ///
    /// Messages in fields listed in `opaque`, at any depth, are taken for
    /// equal, for callers that keep their layouts elsewhere. `file` holds the
    /// payloads of both. Cost: one pass over both trees.
    pub fn between(
        source: &Message,
        rebuilt: &Message,
        opaque: &[FieldOf],
        file: &[u8],
    ) -> Option<Self> {
        let mut queues = queues(rebuilt);
        let mut lists = List::recoded(source, &queues, file);
        let mut items = Vec::new();
        let mut plain = true;
        let mut previous = 0;
        for field in &source.fields {
            let number = field.number;
            let item = match lists.get_mut(&number) {
                Some(list) if is_list(&field.value) => list.item(field, file),
                _ => None,
            };
            let item =
                item.unwrap_or_else(|| occurrence(source.schema, field, &mut queues, opaque, file));
            plain &= matches!(item, Item::Take { .. }) && number >= previous;
            previous = number;
            push(&mut items, item);
        }
        for (number, left) in queues {
            if !left.is_empty() && !lists.contains_key(&number) {
                plain = false;
                items.push(Item::Drop { number });
            }
        }
        (!plain).then_some(Self { items })
    }

    /// Puts `rebuilt` into this layout.
    pub fn apply(&self, rebuilt: Message) -> Message {
        let schema = rebuilt.schema;
        let mut applier = Applier::new(self, rebuilt);
        for item in &self.items {
            applier.step(item);
        }
        Message {
            schema,
            fields: applier.finish(),
        }
    }
}

/// Appends an item; neighbouring takes of one field become one.
fn push(items: &mut Vec<Item>, item: Item) {
    if let (Some(Item::Take { number, count }), Item::Take { number: next, .. }) =
        (items.last_mut(), &item)
        && number == next
    {
        *count = count.saturating_add(1);
        return;
    }
    items.push(item);
}

/// The item for a field that isn't recoded list data.
fn occurrence(
    schema: &'static Schema,
    field: &Field,
    queues: &mut Queues<'_>,
    opaque: &[FieldOf],
    file: &[u8],
) -> Item {
    let number = field.number;
    let queue = queues.entry(number).or_default();
    let Some(front) = queue.front() else {
        return extra(field, file);
    };
    let is_opaque = |of: &FieldOf| std::ptr::eq(of.0, schema) && of.1 == number;
    let inner = match (&field.value, &front.value) {
        (Value::Message(_), Value::Message(_)) if opaque.iter().any(is_opaque) => None,
        (Value::Message(a), Value::Message(b)) => Layout::between(a, b, opaque, file),
        (a, b) if a == b => None,
        _ => return extra(field, file),
    };
    queue.pop_front();
    if inner.is_none() && field.tag_width == 0 && field.width == 0 {
        return Item::Take { number, count: 1 };
    }
    let inner = inner.unwrap_or_default();
    Item::Shaped {
        number,
        tag_width: field.tag_width,
        width: field.width,
        inner,
    }
}

/// Keeps an occurrence as bytes.
fn extra(field: &Field, file: &[u8]) -> Item {
    let mut holder = Message::new(&super::schema::ENTRY);
    holder.fields.push(field.clone());
    // Encoding fails only for payloads outside `file`, which a decoded source
    // doesn't have; an empty extra is the worst that can come of it.
    let bytes = super::encode::encode_to_vec(&holder, file).unwrap_or_default();
    Item::Extra {
        number: field.number,
        bytes: bytes.into(),
    }
}

/// Elements of a repeated numeric field that source and rebuilt write
/// differently but that are equal.
struct List {
    number: u32,
    kind: Kind,
}

impl List {
    /// The numeric fields of `source` that differ from `rebuilt` in form only.
    fn recoded(source: &Message, rebuilt: &Queues<'_>, file: &[u8]) -> BTreeMap<u32, List> {
        let mut lists = BTreeMap::new();
        let numbers: BTreeSet<u32> = source
            .fields
            .iter()
            .filter(|field| is_list(&field.value))
            .map(|field| field.number)
            .collect();
        for number in numbers {
            let Some(spec) = source.schema.field(number) else {
                continue;
            };
            let ours: Vec<&Field> = source
                .fields
                .iter()
                .filter(|field| field.number == number && is_list(&field.value))
                .collect();
            let theirs: Vec<&Field> = rebuilt
                .get(&number)
                .into_iter()
                .flatten()
                .copied()
                .collect();
            if ours.len() == theirs.len()
                && ours.iter().zip(&theirs).all(|(a, b)| a.value == b.value)
            {
                continue;
            }
            let bits = collect(&ours, spec.kind, file);
            if bits.is_some() && bits == collect(&theirs, spec.kind, file) {
                lists.insert(
                    number,
                    List {
                        number,
                        kind: spec.kind,
                    },
                );
            }
        }
        lists
    }

    fn item(&mut self, field: &Field, file: &[u8]) -> Option<Item> {
        let bits = collect(&[field], self.kind, file)?;
        let number = self.number;
        let packed = matches!(field.value, Value::Packed(_));
        let plain = elements_value(number, self.kind, packed, &bits);
        let count = bits.len() as u64;
        let minimal = field.tag_width == 0 && field.width == 0;
        if minimal && same_bytes(&plain, &field.value, file) {
            return Some(Item::Elements {
                number,
                count,
                packed,
            });
        }
        match extra(field, file) {
            Item::Extra { bytes, .. } => Some(Item::Exact {
                number,
                count,
                bytes,
            }),
            _ => None,
        }
    }
}

/// Are two lists written the same, wherever their bytes lie?
fn same_bytes(a: &Value, b: &Value, file: &[u8]) -> bool {
    match (a, b) {
        (Value::Packed(a), Value::Packed(b)) | (Value::Run(a), Value::Run(b)) => a
            .bytes(file)
            .is_some_and(|bytes| Some(bytes) == b.bytes(file)),
        _ => false,
    }
}

fn collect(fields: &[&Field], kind: Kind, file: &[u8]) -> Option<Vec<u64>> {
    let mut bits = Vec::new();
    for field in fields {
        elements_of(&field.value, kind, file, &mut bits)?;
    }
    Some(bits)
}

/// State of [`Layout::apply`].
struct Applier {
    schema: &'static Schema,
    queues: BTreeMap<u32, VecDeque<Field>>,
    lists: BTreeMap<u32, VecDeque<u64>>,
    out: Vec<Field>,
}

impl Applier {
    fn new(layout: &Layout, rebuilt: Message) -> Self {
        let schema = rebuilt.schema;
        let mut queues = BTreeMap::<u32, VecDeque<Field>>::new();
        for field in rebuilt.fields {
            queues.entry(field.number).or_default().push_back(field);
        }
        let mut lists = BTreeMap::new();
        for item in &layout.items {
            let (Item::Elements { number, .. } | Item::Exact { number, .. }) = item else {
                continue;
            };
            let (Some(spec), Some(queue)) = (schema.field(*number), queues.get(number)) else {
                continue;
            };
            let fields: Vec<&Field> = queue.iter().collect();
            if let Some(bits) = collect(&fields, spec.kind, &[]) {
                queues.remove(number);
                lists.insert(*number, VecDeque::from(bits));
            }
        }
        Self {
            schema,
            queues,
            lists,
            out: Vec::new(),
        }
    }

    fn next(&mut self, number: u32) -> Option<Field> {
        self.queues.get_mut(&number)?.pop_front()
    }

    fn elements(&mut self, number: u32, count: u64) -> Vec<u64> {
        let Some(list) = self.lists.get_mut(&number) else {
            return Vec::new();
        };
        let count = usize::try_from(count).unwrap_or(usize::MAX).min(list.len());
        list.drain(..count).collect()
    }

    fn put_elements(&mut self, number: u32, packed: bool, bits: &[u64]) {
        if let Some(spec) = self.schema.field(number)
            && (packed || !bits.is_empty())
        {
            let value = elements_value(number, spec.kind, packed, bits);
            self.out.push(Field::new(number, value));
        }
    }

    fn step(&mut self, item: &Item) {
        match item {
            Item::Take { number, count } => {
                for _ in 0..*count {
                    let Some(field) = self.next(*number) else {
                        break;
                    };
                    self.out.push(field);
                }
            }
            Item::Shaped {
                number,
                tag_width,
                width,
                inner,
            } => {
                let Some(mut field) = self.next(*number) else {
                    return;
                };
                if let Value::Message(message) = &mut field.value {
                    let taken = std::mem::replace(&mut **message, Message::new(self.schema));
                    **message = inner.apply_if_any(taken);
                }
                field.tag_width = *tag_width;
                field.width = *width;
                self.out.push(field);
            }
            Item::Elements {
                number,
                count,
                packed,
            } => {
                let bits = self.elements(*number, *count);
                if *count == 0 || !bits.is_empty() {
                    self.put_elements(*number, *packed, &bits);
                }
            }
            Item::Exact {
                number,
                count,
                bytes,
            } => {
                let bits = self.elements(*number, *count);
                if self.means(*number, bytes, &bits) {
                    let blob = Blob::Owned(bytes.clone());
                    self.out.push(Field::new(*number, Value::Unknown(blob)));
                } else {
                    let packed = self.schema.field(*number).is_some_and(|spec| spec.packed);
                    self.put_elements(*number, packed, &bits);
                }
            }
            Item::Extra { number, bytes } if self.is_outdated(*number, bytes) => {}
            Item::Extra { number, bytes } => {
                let blob = Blob::Owned(bytes.clone());
                self.out.push(Field::new(*number, Value::Unknown(blob)));
            }
            Item::Drop { number } => {
                self.queues.remove(number);
            }
        }
    }

    /// Has an edit given the message a singular message where `bytes` hold one?
    fn is_outdated(&self, number: u32, bytes: &[u8]) -> bool {
        let spec = self.schema.field(number);
        let single = spec.is_some_and(|s| matches!(s.kind, Kind::Message(_)) && !s.repeated);
        let tag = Cursor::new(bytes).tag();
        single
            && self.queues.contains_key(&number)
            && tag.is_ok_and(|tag| tag.wire == WireType::Len)
    }

    /// Do `bytes`, tags included, hold just the elements `bits`?
    fn means(&self, number: u32, bytes: &[u8], bits: &[u64]) -> bool {
        let decoded = super::decode::decode(bytes, self.schema, super::decode::Limits::default());
        let Ok(message) = decoded else { return false };
        message
            .fields
            .iter()
            .all(|field| field.number == number && is_list(&field.value))
            && message
                .elements(number, bytes)
                .is_some_and(|found| found == bits)
    }

    /// What the layout didn't name follows in ascending order.
    fn finish(mut self) -> Vec<Field> {
        let lists = std::mem::take(&mut self.lists);
        for (number, left) in lists {
            let packed = self.schema.field(number).is_some_and(|spec| spec.packed);
            if !left.is_empty() {
                self.put_elements(number, packed, &Vec::from(left));
            }
        }
        self.out.extend(self.queues.into_values().flatten());
        self.out
    }
}

impl Layout {
    fn apply_if_any(&self, message: Message) -> Message {
        if self.items.is_empty() {
            message
        } else {
            self.apply(message)
        }
    }
}

/// The field number of the tag at the start of `bytes`.
fn leading_number(bytes: &[u8]) -> Option<u32> {
    Cursor::new(bytes).tag().ok().map(|tag| tag.number)
}
