"""The Telegram bot as people meet it: messages in, answers out, who may write, and commands."""

from __future__ import annotations

import json
import threading

import pytest

from oxydra.channels import mail, telegram
from oxydra.channels.senders import Senders
from oxydra.config import TelegramConfig
from oxydra.skills import asked_for
from oxydra.store.channels import Debt
from oxydra.store.notices import Notice
from oxydra.tools.base import tool
from oxydra.types import SafetyTier, ToolContext
from tests.conftest import eventually
from tests.fake_telegram import refusal
from tests.scripted import calls
from tests.telegram_kit import GROUP, chatting
from tests.test_gateway import Held


def test_a_message_is_answered_formatted(tmp_path):
    with chatting(tmp_path, "**Hello** <Ann> `x`") as w:
        w.fake.says("Hi")
        w.fake.wait_told("Hello <Ann> x")
        w.settled()
        assert w.prompts() == ["Hi"]
        texts = [m["text"] for m in w.fake.messages[42].values()]
        assert texts == ["<b>Hello</b> &lt;Ann&gt; <code>x</code>"]
        (session,) = w.store.sessions()
        assert session.channel_origin == "telegram:42:0"
        menu = w.fake.asked("setMyCommands")[0]["commands"]
        assert {"new", "cancel", "help"} <= {row["command"] for row in menu}


def test_a_chat_goes_on_in_its_session_over_a_restart(tmp_path):
    with chatting(tmp_path, "one", "two") as w:
        w.fake.says("first")
        w.fake.wait_told("one")
        w.settled()
        w.stop()
        w.fake.says("second")
        w.start()
        w.fake.wait_told("two")
        w.settled()
        (session,) = w.store.sessions()
        said = [m.content for m in w.store.messages(session.session_id)]
        assert said == ["first", "one", "second", "two"]
        assert w.fake.told() == ["one", "two"]


def test_an_answer_grows_in_one_message(tmp_path):
    held = Held("The answer ", "is growing")
    with chatting(tmp_path, provider=held) as w:
        w.fake.says("Go")
        first = w.fake.wait_told("The answer is growing ▍")
        assert w.fake.asked("sendChatAction")
        held.release.set()
        eventually(lambda: w.fake.told() == ["The answer is growing"])
        w.settled()
        assert [m["message_id"] for m in w.fake.messages[42].values()] == [first["message_id"]]


def test_long_answers_come_in_order_and_whole(tmp_path):
    answer = "\n\n".join(f"Paragraph {n}: " + "word " * 120 for n in range(40))
    with chatting(tmp_path, answer) as w:
        w.fake.says("Tell me all")
        w.fake.wait_told("Paragraph 39")
        w.settled()
        told = w.fake.told()
        assert len(told) > 4
        assert "".join("".join(told).split()) == "".join(answer.split())


def test_what_telegram_cannot_parse_is_sent_plain(tmp_path):
    def fail(method, params):
        if params.get("parse_mode") == "HTML":
            return refusal(400, "Bad Request: can't parse entities: whatever")
        return None

    with chatting(tmp_path, "**bold**") as w:
        w.fake.fail = fail
        w.fake.says("Hi")
        w.fake.wait_told("bold")
        w.settled()
        assert w.fake.told() == ["bold"]


def test_a_failed_turn_is_told(tmp_path):
    from oxydra.errors import ProviderError

    with chatting(tmp_path, ProviderError("The model is gone.", remedy="Wait.")) as w:
        w.fake.says("Hi")
        w.fake.wait_told("⚠ The model is gone. Wait.")
        w.settled()


# ------------------------------------------------------------------------------------ who may write


def test_only_listed_people_are_heard_and_the_others_written_down(tmp_path):
    stranger = {"id": 7, "is_bot": False, "first_name": "Ann"}
    with chatting(tmp_path, "yes") as w:
        w.fake.says("let me in", who=7)
        w.fake.says("again", who=7)
        w.fake.says("as a channel", sender_chat={"id": -5, "type": "channel"})
        w.fake.says("anonymous", chat=GROUP, **{"from": {"id": 1087968824, "is_bot": True}})
        w.fake.says("in an unlisted group @oxydra_bot", chat=-99)
        w.fake.says("in her chat", chat=42, **{"from": stranger})
        w.fake.update(message={"message_id": 1, "chat": {"id": 42, "type": "channel"}})
        w.fake.update(message="nonsense")
        w.fake.update(edited_message=w.fake.message("edit", who=7))
        w.fake.says("me")
        w.fake.wait_told("yes")
        w.settled()
        assert w.prompts() == ["me"]
        rows = [json.loads(line) for line in (tmp_path / "audit.log").read_text().splitlines()]
        assert [(row["sender"], row["why"]) for row in rows] == [
            (7, "not listed"),
            (42, "a chat speaks, not a person"),
            (1087968824, "not a person"),
            (0, "not listed"),
        ]
        assert list(w.fake.messages) == [42]


def test_a_sender_is_written_down_once_a_minute(tmp_path):
    now = 1000.0
    person, other = ({"id": number, "is_bot": False} for number in (7, 8))
    senders = Senders(TelegramConfig(enabled=True), tmp_path / "audit.log", lambda: now)

    def rows():
        lines = (tmp_path / "audit.log").read_text().splitlines()
        return [(row["sender"], row["dropped_before"]) for row in map(json.loads, lines)]

    for _ in range(50):
        assert not senders.admits(person, {"id": 7, "type": "private"}, {})
        assert not senders.admits(other, {"id": 8, "type": "private"}, {})
        now += 1
    assert rows() == [(7, 0), (8, 0)]
    now += 11
    senders.admits(person, {"id": 7, "type": "private"}, {})
    assert rows() == [(7, 0), (8, 0), (7, 49)]


def test_nobody_is_heard_where_nobody_is_listed(tmp_path):
    with chatting(tmp_path, "no", senders=()) as w:
        w.fake.says("Hi")
        eventually(lambda: w.fake.confirmed)
        assert w.store.sessions() == [] and w.fake.messages == {}


def test_groups_need_a_mention_or_a_reply(tmp_path):
    mention = [{"type": "mention", "offset": 4, "length": 11}]
    with chatting(tmp_path, "one", "two", "three") as w:
        w.fake.says("nothing for the bot", chat=GROUP)
        w.fake.says("😀 Hi @oxydra_bot", chat=GROUP, entities=[{**mention[0], "offset": 6}])
        first = w.fake.wait_told("one", GROUP)
        w.fake.says("@Oxydra_Bot", chat=GROUP, entities=[{**mention[0], "offset": 0}], who=43)
        w.fake.wait_told("two", GROUP)
        w.fake.says("what?", chat=GROUP, reply_to_message=first)
        w.fake.says("@other_bot", chat=GROUP, entities=[{**mention[0], "offset": 0, "length": 10}])
        w.fake.says("/new@other_bot", chat=GROUP)
        w.fake.wait_told("three", GROUP)
        w.settled()
        assert w.prompts() == ["😀 Hi @oxydra_bot", "@Oxydra_Bot", "what?"]
        assert w.fake.asked("sendMessage")[0]["reply_parameters"]["allow_sending_without_reply"]


def test_a_group_may_be_answered_always(tmp_path):
    with chatting(tmp_path, "one", respond_in_groups="all") as w:
        w.fake.says("nobody listed", chat=GROUP, who=7)
        w.fake.says("no mention", chat=GROUP)
        w.fake.wait_told("one", GROUP)
        w.settled()
        assert w.prompts() == ["no mention"]


def test_what_others_wrote_taints_the_turn(tmp_path):
    other = {"text": "secret\nplan", "from": {"id": 9}}
    with chatting(tmp_path, *["ok"] * 5) as w:
        w.fake.says("mine")
        w.fake.says("theirs", forward_origin={"type": "hidden_user"})
        w.fake.says("look", reply_to_message=other)
        w.fake.says("my own", reply_to_message={"text": "before", "from": {"id": 42}})
        w.fake.says("inline", via_bot={"id": 5})
        eventually(lambda: len(w.provider.requests) == 5)
        w.settled()
        (session,) = w.store.sessions()
        said = [m for m in w.store.messages(session.session_id) if m.role == "user"]
        assert [m.tainted for m in said] == [False, True, True, False, True]
        assert said[1].content == "[Forwarded from somebody else:]\ntheirs"
        assert said[2].content == "[It answers this message:]\n> secret\n> plan\nlook"


# ----------------------------------------------------------------------------- sessions and topics


def test_topics_have_sessions_that_bear_their_names(tmp_path):
    with chatting(tmp_path, "a", "b", "c", respond_in_groups="all") as w:
        w.fake.says("", chat=GROUP, topic=5, forum_topic_created={"name": "Garden"})
        w.fake.says("in five", chat=GROUP, topic=5)
        w.fake.wait_told("a", GROUP)
        made = {"message_id": 3, "forum_topic_created": {"name": "House"}, "from": {"id": 123456}}
        w.fake.says("in six", chat=GROUP, topic=6, reply_to_message=made)
        w.fake.wait_told("b", GROUP)
        w.fake.says("", chat=GROUP, topic=6, forum_topic_edited={"name": "Cellar"})
        w.fake.says("again in five", chat=GROUP, topic=5)
        w.fake.wait_told("c", GROUP)
        w.settled()
        assert w.fake.told(GROUP, 5) == ["a", "c"] and w.fake.told(GROUP, 6) == ["b"]
        assert {s.display_name for s in w.store.sessions()} == {"Garden", "Cellar"}


def test_a_name_outlives_a_restart_and_new_conversations_of_a_topic_bear_it(tmp_path):
    first = {"message_id": 3, "forum_topic_created": {"name": "Garden"}, "from": {"id": 42}}
    topic = {"chat": GROUP, "topic": 5}
    with chatting(tmp_path, "a", "b", "c", respond_in_groups="all") as w:

        def names():
            w.settled()
            return [s.display_name for s in w.store.sessions()]

        w.fake.says("one", **topic, reply_to_message=first)
        w.fake.wait_told("a", GROUP)
        w.fake.says("", **topic, forum_topic_edited={"name": "Yard"})
        w.fake.says("", **topic, forum_topic_edited={"icon_custom_emoji_id": "1"})
        assert names() == ["Yard"]
        w.fake.says("/new", **topic, reply_to_message=first)
        assert names() == ["Yard", "Yard"]
        w.fake.says("/new Carrots", **topic, reply_to_message=first)
        assert names() == ["Carrots", "Yard", "Yard"]
        w.stop()
        w.start()
        w.fake.says("two", **topic, reply_to_message=first)  # which bears the topic's first name
        w.fake.wait_told("b", GROUP)
        assert names() == ["Carrots", "Yard", "Yard"]


def test_commands(tmp_path):
    with chatting(tmp_path, "hello", "again") as w:

        def ask(text, expected):
            w.fake.says(text)
            return w.fake.wait_told(expected)

        ask("/start", "/switch - Go on with another one")
        ask("/cancel", "Nothing runs here.")
        ask("Hi", "hello")
        ask("/new My  project", "My project")
        new, old = w.store.sessions()
        assert (new.display_name, old.title) == ("My project", "Hi")
        ask("/sessions", f"→ {new.session_id[:8]} My project\n• {old.session_id[:8]} Hi")
        ask(f"/switch {old.session_id[:8]}", "Going on with")
        ask("/switch", f"letters:\n• {new.session_id[:8]} My project\n→ {old.session_id[:8]} Hi")
        ask("/switch nothing", "There is no session 'nothing'")
        ask("More", "again")
        ask("/status@oxydra_bot", "Model: p m")
        ask("/cost", "Nobody counts")
        ask("/tools", "There is no tool.")
        ask("/mcp", "Nobody knows that here.")
        ask("/cancelall", "Stopping everything.")
        ask("/nonsense", "There is no command /nonsense.")
        w.settled()
        assert [m.content for m in w.store.messages(old.session_id)][2:] == ["More", "again"]
        w.fake.says("/sessions@oxydra_bot", chat=GROUP)
        w.fake.wait_told("in a private chat only", GROUP)


def test_servers_are_told_of_without_a_way_to_trust_them(tmp_path):
    server = {"name": "hub", "state": "failed", "safety_tier": "privileged", "trusted": False}
    with chatting(tmp_path) as w:
        rows = [{"name": f"tool{n}", "server": "", "requested": True} for n in range(33)]
        w.gateway.commands["tools"] = lambda args: {"agent": "me", "tools": rows}
        w.fake.says("/tools")
        told = w.fake.wait_told("For the agent me: 33 tools")["plain"]
        assert told.split("\n")[1].startswith("tool0, tool1, ") and told.endswith("and 3 more")
        row = {"name": "invoices", "activation": "auto", "description": "Check.", "missing": ["x"]}
        w.gateway.commands["skills"] = lambda args: {"skills": [row]}
        w.fake.says("/skills")
        w.fake.wait_told("invoices (auto): Check. - not offered: it needs x")
        w.gateway.commands["mcp"] = lambda args: {"servers": [{**server, "detail": "\x1b[2Jit"}]}
        w.fake.says("/mcp trust hub")
        told = w.fake.wait_told("hub: failed · privileged")["plain"]
        assert "! ␛[2Jit" in told and "oxydra-runner mcp-servers trust hub" in told


def test_a_skill_is_asked_for(tmp_path):
    with chatting(tmp_path, "one", "two") as w:
        w.fake.says("/skill invoices  Sum them.")
        w.fake.wait_told("one")
        assert w.prompts() == [asked_for("invoices", "Sum them.")]
        w.fake.says("/skill")
        w.fake.wait_told("Which skill")
        w.settled()


def test_a_running_turn_is_cancelled(tmp_path):
    with chatting(tmp_path, provider=Held("Working on it")) as w:
        w.fake.says("Go")
        w.fake.wait_told("Working on it")
        w.fake.says("/cancel")
        w.fake.wait_told("Stopping it.")
        w.fake.wait_told("[cancelled]\n\nCancelled.")
        w.settled()


def test_an_edit_corrects_what_is_not_answered_yet_and_nothing_else(tmp_path):
    held = Held("Hm")
    with chatting(tmp_path, provider=held) as w:
        number = w.fake.says("two plus too")
        w.fake.wait_told("Hm")
        edited = w.fake.message("two plus two", edit_date=5)
        w.fake.update(edited_message={**edited, "message_id": number})
        eventually(lambda: w.fake.confirmed)
        held.release.set()
        w.settled()
        asked = len(held.requests)
        assert asked == 2  # before and after it joined, or in a turn of its own
        assert "edited. It says now:]\ntwo plus two" in w.prompts()[-1]
        w.fake.update(edited_message={**edited, "message_id": number, "edit_date": 6})
        eventually(lambda: w.fake.confirmed)
        w.settled()
        assert len(held.requests) == asked


def test_a_group_has_no_memory_no_schedules_and_no_vault(tmp_path):
    with chatting(tmp_path, "private", "group", respond_in_groups="all") as w:
        w.bot._in_groups = frozenset({"file_read"})
        w.fake.says("in private")
        w.fake.wait_told("private")
        w.fake.says("in public", chat=GROUP)
        w.fake.wait_told("group", GROUP)
        w.settled()
        terms = {
            s.channel_origin: w.bot.terms_of(
                w.store.turn(w.store.history(s.session_id)[0][0].turn_id)
            )
            for s in w.store.sessions()
        }
        assert terms["telegram:42:0"] is None
        group = terms[f"telegram:{GROUP}:0"]
        assert (group.tools, group.recall, group.vault) == ({"file_read"}, False, False)


# ------------------------------------------------------------------------------------- approvals


def guarded(tmp_path, *steps, **more):
    """A bot whose tool `erase` is asked about."""
    return chatting(
        tmp_path, *steps, tools=[erase], rules=[{"decision": "ask", "tool": "erase"}], **more
    )


@tool(tier=SafetyTier.SIDE_EFFECTING)
def erase(context: ToolContext, path: str) -> str:
    """Erase."""
    return f"erased {path}"


ERASE = calls(("erase", '{"path": "/shared/a"}'))


def test_an_approval_is_a_button_for_whose_message_it_came_from(tmp_path):
    with guarded(tmp_path, ERASE, "Erased it.", respond_in_groups="all") as w:
        w.fake.says("Erase a", chat=GROUP)
        asked = w.fake.wait_told("May erase run?", GROUP)
        assert "path: /shared/a" in asked["plain"]
        w.fake.presses(asked, "Allow", who=43)  # listed too, but not whose message it was
        w.fake.presses(asked, "Allow", who=7)
        eventually(lambda: w.fake.confirmed)
        said = [one["text"] for one in w.fake.asked("answerCallbackQuery")]
        assert said == ["Only the person whose message this came from may answer."]
        assert w.bot._approvals.pending()
        w.fake.presses(asked, "Allow")
        w.fake.wait_told("Erased it.", GROUP)
        w.settled()
        done = w.fake.wait_told("→ allowed (Ann)", GROUP)
        assert done["message_id"] == asked["message_id"] and not done["reply_markup"]
        w.fake.presses(asked, "Deny")
        eventually(lambda: len(w.fake.asked("answerCallbackQuery")) == 3)
        assert "allowed already" in w.fake.asked("answerCallbackQuery")[-1]["text"]


def test_a_denied_call_is_not_made(tmp_path):
    with guarded(tmp_path, ERASE, "As you wish.") as w:
        w.fake.says("Erase a")
        w.fake.presses(w.fake.wait_told("May erase run?"), "Deny")
        w.fake.wait_told("As you wish.")
        w.fake.wait_told("→ denied (Ann)")
        w.settled()
        assert "did not allow it" in w.provider.requests[1].messages[-1].content


def test_what_cannot_be_shown_whole_has_no_button_to_allow_it(tmp_path):
    long = calls(("erase", json.dumps({"path": "x" * 20_000})))
    with guarded(tmp_path, long, "Then not.") as w:
        w.fake.says("Erase much")
        asked = w.fake.wait_told("it is too long to be shown whole")
        labels = [b["text"] for row in asked["reply_markup"]["inline_keyboard"] for b in row]
        assert labels == ["Deny"]
        buttons = asked["reply_markup"]["inline_keyboard"]
        key = buttons[0][0]["callback_data"].partition(":")[0]
        buttons.append([{"text": "Forged", "callback_data": f"{key}:allow"}])
        w.fake.presses(asked, "Forged")
        eventually(lambda: w.fake.asked("answerCallbackQuery"))
        assert "can't be allowed" in w.fake.asked("answerCallbackQuery")[0]["text"]
        w.fake.presses(asked, "Deny")
        w.fake.wait_told("Then not.")
        w.settled()


def test_a_request_survives_a_restart_and_is_asked_once(tmp_path):
    with guarded(tmp_path, ERASE, "Erased it.") as w:
        w.fake.says("Erase a")
        asked = w.fake.wait_told("May erase run?")
        eventually(lambda: not w.store.owed("telegram", "ready"))
        w.stop()
        w.start()
        w.fake.presses(asked, "Allow in this session")
        w.fake.wait_told("Erased it.")
        w.settled()
        assert sum("May erase run?" in said for said in w.fake.told()) == 1


# -------------------------------------------------------------------------------------- troubles


def test_another_poller_is_told_of_and_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(telegram, "CONFLICT_SECONDS", (0.05, 0.1))
    with chatting(tmp_path, "yes") as w:
        w.fake.fail = lambda method, _: (
            refusal(409, "Conflict: terminated by other getUpdates request")
            if method == "getUpdates"
            else None
        )
        eventually(lambda: "Another program" in w.bot.state()["detail"])
        assert w.bot.state()["state"] == "waiting"
        w.fake.fail = lambda _method, _params: None
        w.fake.says("Hi")
        w.fake.wait_told("yes")
        eventually(lambda: w.bot.state() == running(w))


def running(w):
    return {"state": "running", "detail": "", "bot": "oxydra_bot"}


def test_a_revoked_token_stops_the_bot_and_keeps_what_is_owed(tmp_path):
    held = Held("Thinking")
    with chatting(tmp_path, provider=held) as w:
        w.fake.says("Hi")
        w.fake.wait_told("Thinking")
        w.fake.token, valid = "1:other", w.fake.token
        held.release.set()
        eventually(lambda: w.bot.state()["state"] == "stopped")
        assert "not valid" in w.bot.state()["detail"]
        eventually(lambda: w.store.owed("telegram", "ready"))
        w.stop()
        w.fake.token = valid
        w.start()
        eventually(lambda: w.fake.told() == ["Thinking"])
        w.settled()


def test_a_network_that_is_down_delays_and_loses_nothing(tmp_path, monkeypatch):
    for module in (telegram, mail):
        monkeypatch.setattr(module, "BACKOFF", (0.02, 0.1))
    down = threading.Event()
    with chatting(tmp_path, "one", "two") as w:
        w.fake.fail = lambda _method, _params: (502, {"bad": "gateway"}) if down.is_set() else None
        w.fake.says("first")
        w.fake.wait_told("one")
        down.set()
        w.fake.says("second")
        eventually(lambda: w.bot.state()["state"] == "waiting")
        down.clear()
        w.fake.wait_told("two")
        w.settled()
        eventually(lambda: w.bot.state() == running(w))


def test_a_chat_that_asks_for_patience_gets_it_and_the_others_go_on(tmp_path):
    refused = []

    def fail(method, params):
        if method == "sendMessage" and params["chat_id"] == 42 and len(refused) < 3:
            refused.append(params)
            return refusal(429, "Too Many Requests: retry after 0", retry_after=0)
        return None

    with chatting(tmp_path, "same", "same") as w:
        w.fake.fail = fail
        w.fake.says("Hi", who=42)
        w.fake.says("Hi", who=43)
        w.fake.wait_told("same", 43)
        w.fake.wait_told("same", 42)
        w.settled()
        assert len(refused) == 3 and w.fake.told() == ["same"]


@pytest.mark.parametrize(
    "why",
    [
        "Forbidden: bot was blocked by the user",
        "Forbidden: bot was kicked from the supergroup chat",
        "Forbidden: the group chat was deleted",
        "Bad Request: chat not found",
    ],
)
def test_a_chat_that_is_gone_holds_nobody_up(tmp_path, why):
    with chatting(tmp_path, "lost", "fine") as w:
        w.fake.fail = lambda method, params: (
            refusal(403 if "Forbidden" in why else 400, why)
            if method == "sendMessage" and params["chat_id"] == 42
            else None
        )
        w.fake.says("Hi", who=42)
        w.settled()
        w.fake.says("Hi", who=43)
        w.fake.wait_told("fine", 43)
        w.settled()
        assert w.store.owed("telegram", "dropped")[0].chat == 42
        member = {"chat": {"id": GROUP}, "new_chat_member": {"status": "kicked"}}
        w.fake.update(my_chat_member=member)
        eventually(lambda: w.fake.confirmed)


def test_a_message_that_somebody_deleted_is_sent_anew(tmp_path):
    held = Held("Growing")
    with chatting(tmp_path, provider=held) as w:
        w.fake.says("Hi")
        w.fake.wait_told("Growing")
        eventually(lambda: any(item.live for item in w.store.owed("telegram", "waiting")))
        w.fake.messages[42].clear()
        held.release.set()
        w.settled()
        assert w.fake.told() == ["Growing"]


def test_a_group_that_became_a_supergroup_keeps_its_session(tmp_path):
    new = -1009999999999
    both = (str(GROUP), str(new))
    with chatting(tmp_path, "one", "two", groups=both, respond_in_groups="all") as w:
        w.fake.says("first", chat=GROUP)
        w.fake.wait_told("one", GROUP)
        w.settled()
        w.fake.says("", chat=GROUP, migrate_to_chat_id=new)
        w.fake.says("second", chat=new)
        w.fake.wait_told("two", new)
        w.settled()
        assert len(w.store.sessions()) == 1


def test_what_is_owed_moves_with_the_group(tmp_path):
    new = -1009999999999
    both = (str(GROUP), str(new))
    with chatting(tmp_path, "one", groups=both, respond_in_groups="all") as w:
        w.fake.fail = lambda method, params: (
            refusal(400, "group chat was upgraded", migrate_to_chat_id=new)
            if params.get("chat_id") == GROUP
            else None
        )
        w.fake.says("first", chat=GROUP)
        w.fake.wait_told("one", new)
        w.settled()


def test_a_group_beside_the_brokers_list_gets_nothing_and_it_is_said(tmp_path):
    with chatting(tmp_path, "one") as w:
        w.bot.courier(notice(w, "telegram", "-5:0"), lambda why: None)
        eventually(lambda: "neither a listed sender" in w.bot.state()["detail"])
        assert -5 not in w.fake.messages


# --------------------------------------------------------------------------------------- notices


def notice(w, channel, context):
    payload = {"notice_id": 7, "schedule_name": "Check", "message": "**All** well."}
    return Notice(7, "s", "", channel, context, payload, 0, 0)


def test_a_schedules_word_comes_where_it_was_made_and_once(tmp_path):
    with chatting(tmp_path) as w:
        told = []
        for _ in range(2):
            w.bot.courier(notice(w, "telegram", "42:0"), told.append)
            eventually(lambda: told)
        eventually(lambda: told == ["", ""])
        w.settled()
        assert w.fake.told() == ["Check\n\nAll well."]
        w.bot.courier(notice(w, "telegram", "nowhere"), told.append)
        assert "nowhere" in told[-1]


# ------------------------------------------------------------------------------------------ crashes


def test_what_was_under_way_is_sent_again_and_says_so(tmp_path):
    with chatting(tmp_path, "one") as w:
        w.stop()
        store = w.bot._store.__class__(w.path)
        debt = Debt(42, 0, "reply", "reply:1", "An answer")
        store.owe("telegram", debt)
        (item,) = store.owed("telegram", "ready")
        store.owed_sending(item.item_id)
        store.close()
        w.start()
        w.fake.wait_told("(This may be a repetition.)\nAn answer")
        w.settled()


def test_an_update_that_comes_again_is_no_second_turn(tmp_path):
    with chatting(tmp_path, "one", "two") as w:
        message = w.fake.message("Hi")
        w.fake.update(message=message)
        w.fake.wait_told("one")
        w.settled()
        w.fake.update(message=message)
        w.fake.says("next")
        w.fake.wait_told("two")
        w.settled()
        assert w.fake.told() == ["one", "two"] and len(w.provider.requests) == 2


def test_the_bot_stops_at_once_in_whatever_it_does(tmp_path):
    with chatting(tmp_path, provider=Held("x"), polling_timeout_secs=50) as w:
        w.fake.says("Hi")
        w.fake.wait_told("x")
        eventually(lambda: w.fake.polls > 1)
        w.stop()
        w.start()
