//! Every fuzz target runs on its saved corpus.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use raftify_fuzz::TARGETS;

#[test]
fn every_input_in_the_corpus_is_handled_without_a_panic() {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus");
    for (name, target) in TARGETS {
        let files = fs::read_dir(corpus.join(name)).expect("each target has a corpus");
        let mut inputs = 0;
        for file in files {
            let path = file.expect("the directory can be read").path();
            println!("{}", path.display());
            target(&fs::read(path).expect("the file can be read"));
            inputs += 1;
        }
        assert!(inputs > 0, "the corpus of {name} is empty");
    }
}

#[test]
fn every_target_has_a_fuzz_program() {
    let programs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/fuzz_targets");
    let programs = fs::read_dir(programs).expect("there are programs");
    let names = programs.map(|entry| {
        let path = entry.expect("the directory can be read").path();
        path.file_stem().and_then(|name| name.to_str()).map(str::to_owned).expect("a plain name")
    });
    assert_eq!(names.collect::<BTreeSet<_>>(), TARGETS.iter().map(|(name, _)| (*name).to_owned()).collect());
}
