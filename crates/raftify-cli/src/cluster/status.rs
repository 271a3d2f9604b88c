//! `cluster status`: whether the cluster works, in one sentence, and the state of each member.

use std::io::Write;

use raftify::membership::{Member, MemberRole};
use raftify::status::{DiskSpace, Inspection};
use raftify::{BoxError, LogEntry, StateMachine};
use serde_json::{Value, json};

use crate::arguments::Addresses;
use crate::cluster::survey::{NODE_TIMEOUT, Survey, client};
use crate::failure::{Exit, Failure};
use crate::output::{print_json, table};

/// What the whole cluster answered.
pub(crate) struct Report {
    pub(crate) survey: Survey,
    /// Why no writes are accepted.
    pub(crate) refused: Option<String>,
}

pub(crate) async fn run<E, S>(at: &Addresses, output: &mut dyn Write) -> Result<(), BoxError>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let report = Report::make::<E, S>(at).await?;
    match at.json {
        true => print_json(output, &report.json())?,
        false => report.print(output)?,
    }
    match report.exit() {
        None => Ok(()),
        Some(exit) => Err(Failure { exit, text: None }.into()),
    }
}

impl Report {
    /// Asks all members, each for a limited time, and has the leader confirm that it leads.
    ///
    /// # Errors
    /// No member answers, or the addresses are those of two clusters.
    pub(crate) async fn make<E, S>(at: &Addresses) -> Result<Report, Failure>
    where
        E: LogEntry,
        S: StateMachine<LogEntry = E>,
    {
        let survey = Survey::of_all::<E, S>(at).await?;
        let refused = refused::<E, S>(at, &survey).await?;
        Ok(Report { survey, refused })
    }

    fn states(&self) -> impl Iterator<Item = (&Member, Option<&Inspection>)> {
        self.survey.members.iter().map(|member| (member, self.survey.answer_of(member.id)))
    }

    fn up(&self) -> usize {
        self.states().filter(|(_, answer)| answer.is_some()).count()
    }

    fn exit(&self) -> Option<Exit> {
        if self.refused.is_some() {
            return Some(Exit::NoWrites);
        }
        (self.up() < self.survey.members.len()).then_some(Exit::MemberDown)
    }

    /// In one sentence.
    pub(crate) fn sentence(&self) -> String {
        let (up, all) = (self.up(), self.survey.members.len());
        let writes = match &self.refused {
            None => "writes accepted".to_owned(),
            Some(reason) => format!("no writes accepted: {reason}"),
        };
        let joint = if self.survey.members.is_joint() { "; a membership change is under way" } else { "" };
        format!("{up} of {all} up, {writes}{joint}")
    }

    fn print(&self, output: &mut dyn Write) -> Result<(), BoxError> {
        writeln!(output, "{}", self.sentence())?;
        let mut table =
            table(["id", "address", "role", "term", "commit", "applied", "lag", "last heard", "disk"]);
        for (member, answer) in self.states() {
            table.add_row(self.row(member, answer));
        }
        writeln!(output, "{table}")?;
        for (member, _) in self.states().filter(|(_, answer)| answer.is_none()) {
            let reason = self.survey.silence_of(member);
            writeln!(output, "node {} at {} did not answer: {reason}", member.id, member.address)?;
        }
        Ok(())
    }

    fn row(&self, member: &Member, answer: Option<&Inspection>) -> [String; 9] {
        let unknown = || "-".to_owned();
        let full = if self.is_full(member) { ", full" } else { "" };
        let number =
            |of: fn(&Inspection) -> u64| answer.map_or_else(unknown, |answer| of(answer).to_string());
        [
            member.id.to_string(),
            member.address.clone(),
            role(member, answer),
            number(|answer| answer.status.term.get()),
            number(|answer| answer.status.commit.get()),
            number(|answer| answer.status.applied.get()),
            self.lag(member).map_or_else(unknown, |lag| lag.to_string()),
            self.heard_millis(member).map_or_else(unknown, ago),
            answer.and_then(|answer| answer.disk).map_or_else(unknown, free) + full,
        ]
    }

    /// How many entries of the leader's log the member does not have durably, as the leader knows it.
    fn lag(&self, member: &Member) -> Option<u64> {
        let leader = self.survey.leader()?;
        if leader.status.node_id == member.id {
            return Some(0);
        }
        let progress = leader.progress.iter().find(|peer| peer.id == member.id)?;
        Some(leader.status.last.index.get().saturating_sub(progress.matched.get()))
    }

    /// Whether the disk of the member has less free space than its reserve, as the leader knows it.
    fn is_full(&self, member: &Member) -> bool {
        self.survey.leader().is_some_and(|leader| leader.storage_full.contains(&member.id))
    }

    /// How long ago the leader has heard from the member.
    fn heard_millis(&self, member: &Member) -> Option<u64> {
        self.survey.leader()?.progress.iter().find(|peer| peer.id == member.id)?.heard_millis
    }

    /// As `docs/cli.md` describes it: programs depend on it.
    fn json(&self) -> Value {
        let leader = self.survey.leader();
        let members: Vec<Value> = self
            .states()
            .map(|(member, answer)| {
                let status = answer.map(|answer| &answer.status);
                json!({
                    "id": member.id,
                    "address": member.address,
                    "member_role": member.role,
                    "up": answer.is_some(),
                    "error": answer.is_none().then(|| self.survey.silence_of(member)),
                    "role": status.map(|status| status.role),
                    "term": status.map(|status| status.term),
                    "commit": status.map(|status| status.commit),
                    "applied": status.map(|status| status.applied),
                    "last": status.map(|status| status.last.index),
                    "durable": answer.map(|answer| answer.durable),
                    "snapshot": status.and_then(|status| status.snapshot),
                    "lag": self.lag(member),
                    "heard_millis": self.heard_millis(member),
                    "disk": answer.and_then(|answer| answer.disk),
                    "storage_full": self.is_full(member),
                })
            })
            .collect();
        json!({
            "cluster_id": self.survey.cluster_id.to_string(),
            "summary": self.sentence(),
            "up": self.up(),
            "writes_accepted": self.refused.is_none(),
            "leader": leader.map(|leader| leader.status.node_id),
            "term": leader.map(|leader| leader.status.term),
            "as_of": self.survey.members.as_of(),
            "joint": self.survey.members.is_joint(),
            "members": members,
        })
    }
}

/// Why no writes are accepted; `None`: a majority has confirmed the leader just now.
async fn refused<E, S>(at: &Addresses, survey: &Survey) -> Result<Option<String>, Failure>
where
    E: LogEntry,
    S: StateMachine<LogEntry = E>,
{
    let voters = || survey.members.iter().filter(|member| member.role == MemberRole::Voter);
    let (all, up) = (voters().count(), voters().filter(|voter| survey.answer_of(voter.id).is_some()).count());
    let needed = all / 2 + 1;
    if up < needed {
        return Ok(Some(format!("{up} of {all} voters answer, and {needed} are needed")));
    }
    let Some(leader) = survey.leader() else {
        return Ok(Some(
            "no leader is known: an election is under way, or the voters do not reach each other".to_owned(),
        ));
    };
    let Some(member) = survey.members.get(leader.status.node_id) else {
        return Ok(Some("the leader is being removed".to_owned()));
    };
    let full = &leader.storage_full;
    let have_room = voters().filter(|voter| !full.contains(&voter.id)).count();
    if full.contains(&member.id) || have_room < needed {
        let ids: Vec<String> = full.iter().map(ToString::to_string).collect();
        return Ok(Some(format!("the disks of these nodes are almost full: {}", ids.join(", "))));
    }
    let client = client::<E, S>(at, [member.address.clone()])?.with_deadline(NODE_TIMEOUT).without_waiting();
    let confirmed = client.read_index().await;
    Ok(confirmed.err().map(|error| format!("the leader cannot confirm that it leads: {error}")))
}

/// The role of a node that answers, or that of the member.
fn role(member: &Member, answer: Option<&Inspection>) -> String {
    match answer {
        None => format!("{}, down", member.role),
        Some(answer) if member.role == MemberRole::Voter || answer.status.is_leader() => {
            answer.status.role.to_string()
        }
        Some(_) => member.role.to_string(),
    }
}

/// A time ago, in the largest unit that fits.
pub(crate) fn ago(millis: u64) -> String {
    match millis {
        0..10_000 => format!("{millis} ms ago"),
        10_000..600_000 => format!("{} s ago", millis / 1000),
        _ => format!("{} min ago", millis / 60_000),
    }
}

/// The free part of a disk.
pub(crate) fn free(DiskSpace { free_bytes, size_bytes }: DiskSpace) -> String {
    let percent = free_bytes.saturating_mul(100).checked_div(size_bytes).unwrap_or(0);
    format!("{} free ({percent} %)", bytes(free_bytes))
}

/// A size in the largest unit that fits.
pub(crate) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut rest = bytes as f64;
    while rest >= 1024.0 && unit + 1 < UNITS.len() {
        rest /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(unit > 0 && rest < 10.0);
    format!("{rest:.digits$} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_sizes_are_shown_in_the_unit_that_fits() {
        assert_eq!([ago(40), ago(12_345), ago(3_600_000)], ["40 ms ago", "12 s ago", "60 min ago"]);
        let sizes = [0, 1023, 1536, 10 << 20, 5 << 40, u64::MAX].map(bytes);
        assert_eq!(sizes, ["0 B", "1023 B", "1.5 KiB", "10 MiB", "5.0 TiB", "16777216 TiB"]);
        assert_eq!(free(DiskSpace { free_bytes: 3 << 30, size_bytes: 4 << 30 }), "3.0 GiB free (75 %)");
        assert_eq!(free(DiskSpace { free_bytes: 0, size_bytes: 0 }), "0 B free (0 %)");
    }
}
