//! The pages as a whole: their sections, and the ways that lead to them.

use std::collections::BTreeSet;
use std::fs;

use crate::root;

/// Executed by `situations.rs`.
const HERE: [&str; 8] = [
    "add-node.md",
    "full-disk.md",
    "no-leader.md",
    "node-down.md",
    "replace-node.md",
    "rolling-upgrade.md",
    "rotate-certificates.md",
    "slow-disk.md",
];

/// Executed by the tests of `raftify-cli`.
const WITH_THE_COMMAND_LINE: [&str; 3] = ["backup.md", "check.md", "lost-quorum.md"];

const SECTIONS: [&str; 5] = [
    "## What you see",
    "## What it means",
    "## What you type",
    "## What you lose",
    "## How you know that it worked",
];

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

#[test]
fn every_page_is_tested_and_listed_and_has_all_sections() {
    let found: BTreeSet<String> = fs::read_dir(root().join("docs/operations"))
        .unwrap()
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect();
    let tested = HERE.into_iter().chain(WITH_THE_COMMAND_LINE).map(str::to_owned).collect();
    assert_eq!(found, tested);
    let index = read("docs/operations.md");
    for name in &found {
        assert!(index.contains(&format!("(operations/{name})")), "operations.md does not list {name}");
    }
    for name in HERE {
        let page = read(&format!("docs/operations/{name}"));
        let sections: Vec<&str> = page.lines().filter(|line| line.starts_with("## ")).collect();
        assert_eq!(sections, SECTIONS, "{name}");
    }
}

#[test]
fn every_alert_names_its_page_which_names_the_alert() {
    let rules = read("ops/prometheus/alerts.yml");
    let mut alerts = 0;
    for rule in rules.split("- alert: ").skip(1) {
        let name = rule.lines().next().unwrap().trim();
        let page = rule.lines().find_map(|line| line.trim().strip_prefix("runbook: "));
        let page = page.unwrap_or_else(|| panic!("{name} has no page"));
        assert!(read(page).contains(&format!("`{name}`")), "{page} does not name {name}");
        alerts += 1;
    }
    assert_eq!(alerts, rules.matches("alert:").count());
    assert!(alerts >= 8, "{alerts}");
}

#[test]
fn the_links_between_the_pages_lead_to_existing_sections() {
    let anchor_of = |line: &str| {
        let heading = line.trim_start_matches('#').trim().to_lowercase().replace(' ', "-");
        heading
            .chars()
            .filter(|letter| letter.is_alphanumeric() || "-_".contains(*letter))
            .collect::<String>()
    };
    let pages = HERE.into_iter().chain(WITH_THE_COMMAND_LINE).map(|name| format!("docs/operations/{name}"));
    for page in pages.chain(["docs/operations.md".to_owned()]) {
        let text = read(&page);
        let text = text.split_whitespace().collect::<Vec<&str>>().join(" ");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(link, _)| link) {
            if link.starts_with("http") {
                continue;
            }
            let (file, anchor) = link.split_once('#').unwrap_or((link, ""));
            let directory = root().join(&page).parent().unwrap().to_owned();
            let target = if file.is_empty() { root().join(&page) } else { directory.join(file) };
            let target = fs::read_to_string(&target).unwrap_or_else(|_| panic!("{page}: {link}"));
            let mut anchors = target.lines().filter(|line| line.starts_with('#')).map(anchor_of);
            assert!(anchor.is_empty() || anchors.any(|found| found == anchor), "{page}: {link}");
        }
    }
}
