//! `ModelProto` → [`Module`].

use std::collections::HashMap;
use std::path::Path;

use super::build::Builder;
use super::graph::Importer;
use super::tensor::Origin;
use super::{ENTITIES, ImportError, Sources, generic, layout_of};
use crate::ir::{Attr, Module};
use crate::onnx::external;
use crate::onnx::schema::{self, function, model};
use crate::onnx::{Limits, decode};
use crate::weights::MappedFile;

/// Imports the ONNX model at `path`.
///
/// Weights become ranges of the model file and of the files beside it; nothing
/// but metadata is read. Cost: one pass over the model without its tensors,
/// memory a small multiple of that.
///
/// # Errors
/// The file can't be read, isn't a well-formed model, names what nothing
/// makes, or has tensors that don't hold what they say; all with a place.
pub fn import(path: &Path) -> Result<Module, ImportError> {
    let mapped = MappedFile::open(path)?;
    let file = mapped.bytes()?;
    let shown = path.display().to_string();
    let message =
        decode(file, &schema::MODEL, Limits::default()).map_err(|source| ImportError::Wire {
            path: shown.clone(),
            source,
        })?;
    let Some(main) = message.message(model::GRAPH) else {
        return Err(ImportError::NoGraph { path: shown });
    };
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let directory = directory.unwrap_or(Path::new("."));
    let mut sizes = HashMap::new();
    let mut external_size = |location: &str| file_size(directory, location, &mut sizes);
    let file_name = path
        .file_name()
        .map_or(shown.clone(), |name| name.to_string_lossy().into());
    let origin = Origin {
        file,
        path: file_name.as_str().into(),
        external_size: &mut external_size,
    };
    let mut importer = Importer::new(origin);
    importer.constant_inputs = message
        .int(model::IR_VERSION)
        .is_some_and(|version| version < 4);
    importer.declare_graph(main, "graph", 0)?;
    let functions: Vec<_> = message.messages(model::FUNCTIONS).collect();
    for (index, one) in functions.iter().enumerate() {
        let place = format!("function {index} {:?}", one.text_or_empty(function::NAME));
        importer.declare_function(one, &place)?;
    }
    let mut body = importer.region(main, "graph")?;
    let name = std::mem::replace(&mut body.name, "main".to_owned());
    if name != body.name {
        body.meta.set("name", Attr::Str(name.into_bytes()));
    }
    let mut graph = std::mem::take(&mut importer.graph);
    graph.body = body;
    importer.module.graphs.push(graph);
    for (index, one) in functions.iter().enumerate() {
        let place = format!("function {index} {:?}", one.text_or_empty(function::NAME));
        importer.function(one, &place)?;
    }
    let mut module = importer.module;
    module.name = Path::new(&file_name)
        .file_stem()
        .map_or_else(String::new, |stem| stem.to_string_lossy().into_owned());
    module.base_dir = directory.to_path_buf();
    module.meta = generic::to_attrs(&message, &[model::GRAPH, model::FUNCTIONS], file);
    module
        .meta
        .0
        .insert(0, ("format".to_owned(), Attr::str("onnx")));
    let mut sources = Sources::new(file_name.as_str().into());
    if let Ok(rebuilt) = Builder::model_with(&module, &mut sources, true) {
        // Training information is kept whole, so its graphs are no entities.
        layout_of(&mut module.meta, &message, &rebuilt, &ENTITIES[..2], file);
    }
    Ok(module)
}

fn file_size(
    directory: &Path,
    location: &str,
    sizes: &mut HashMap<String, u64>,
) -> Result<u64, ImportError> {
    if let Some(&size) = sizes.get(location) {
        return Ok(size);
    }
    let place = || format!("external data {location:?}");
    let path = external::resolve(directory, location).map_err(|source| ImportError::External {
        place: place(),
        source,
    })?;
    let size = MappedFile::open(&path)?.len();
    sizes.insert(location.to_owned(), size);
    Ok(size)
}
