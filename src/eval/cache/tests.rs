//! What is stored comes back, or is computed again.

use super::*;

struct Counting(u32);

impl Predictor for Counting {
    fn vocabulary(&self) -> usize {
        3
    }

    fn name(&self) -> &str {
        "counting"
    }

    fn begin(&mut self, _: &[u32]) -> Result<()> {
        Ok(())
    }

    fn rows(&mut self, range: Range<usize>, each: &mut dyn FnMut(usize, &[f32])) -> Result<()> {
        for i in 0..range.len() {
            self.0 += 1;
            each(i, &[self.0 as f32, 0.5, -1.0]);
        }
        Ok(())
    }
}

fn setting(text: u32) -> (Windows, Identity) {
    let protocol = Protocol {
        context: 5,
        stride: 5,
        skip: 0,
        bos: None,
        windows: None,
    };
    let windows = protocol.cut(&[(0..text).collect()]).expect("cut");
    let identity = Identity::new("model", "exact", protocol, &windows, 3);
    (windows, identity)
}

fn pass(predictor: &mut dyn Predictor, windows: &Windows) -> Result<Vec<f32>> {
    let mut all = Vec::new();
    for window in &windows.list {
        predictor.begin(&window.tokens)?;
        predictor.rows(0..window.predictions(), &mut |_, logits| {
            all.extend_from_slice(logits)
        })?;
    }
    Ok(all)
}

fn store(cache: &Cache, windows: &Windows, identity: &Identity) -> Vec<f32> {
    let mut model = Counting(0);
    let mut recorder = cache.record(identity, &mut model).expect("a file");
    let logits = pass(&mut recorder, windows).expect("logits");
    recorder.finish().expect("stored");
    logits
}

#[test]
fn what_is_stored_comes_back() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache {
        dir: dir.path().join("deep"),
        limit: 1 << 20,
    };
    let (windows, identity) = setting(20);
    assert!(cache.find(&identity, "m").is_none());
    let logits = store(&cache, &windows, &identity);
    let path = cache.path(&identity);
    assert_eq!(fs::metadata(&path).expect("a file").len(), identity.bytes());
    assert_eq!(fs::read_dir(&cache.dir).expect("a folder").count(), 1);
    let mut cached = cache.find(&identity, "m").expect("a hit");
    assert_eq!(pass(&mut cached, &windows).expect("logits"), logits);
    // One bit in the last block.
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.len() - 40;
    bytes[at] ^= 1;
    fs::write(&path, &bytes).expect("written");
    let mut cached = cache.find(&identity, "m").expect("the header is sound");
    assert!(matches!(
        pass(&mut cached, &windows),
        Err(EvalError::Damaged { .. })
    ));
    // Cut short.
    fs::write(&path, &bytes[..at]).expect("written");
    assert!(cache.find(&identity, "m").is_none());
    assert!(!path.exists());
}

#[test]
fn unfinished_files_do_not_stay() {
    let dir = tempfile::tempdir().expect("a folder");
    let cache = Cache {
        dir: dir.path().into(),
        limit: 1 << 20,
    };
    let (_, identity) = setting(20);
    let mut model = Counting(0);
    drop(cache.record(&identity, &mut model).expect("a file"));
    assert_eq!(fs::read_dir(dir.path()).expect("a folder").count(), 0);
}

#[test]
fn the_folder_stays_below_its_limit() {
    let dir = tempfile::tempdir().expect("a folder");
    let (windows, first) = setting(20);
    let (more, second) = setting(25);
    let cache = Cache {
        dir: dir.path().into(),
        limit: first.bytes() + second.bytes() - 1,
    };
    assert_ne!(first.key, second.key);
    assert!(cache.fits(&second));
    store(&cache, &windows, &first);
    store(&cache, &more, &second);
    assert!(cache.find(&first, "m").is_none());
    assert!(cache.find(&second, "m").is_some());
}

#[test]
fn changed_files_are_other_models() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("x.safetensors");
    fs::write(&path, "abc").expect("written");
    let files = [path.clone()];
    let before = identify("module", &files);
    assert_eq!(before, identify("module", &files));
    assert_ne!(before, identify("other", &files));
    fs::write(&path, "abd").expect("written");
    assert_ne!(before, identify("module", &files));
}
