"""A Telegram bot over a gateway, a store and a scripted model, behind a real broker and before the
fake Bot API; it can be stopped and started again on the same database.
"""

from __future__ import annotations

import contextlib

from oxydra.approvals import Approvals, Rules
from oxydra.broker import Destinations
from oxydra.channels.live import Pacing
from oxydra.channels.media import Kept
from oxydra.channels.route import telegram_route
from oxydra.channels.telegram import Telegram
from oxydra.config import RuntimeConfig, SenderConfig, TelegramConfig
from oxydra.policy import parse_virtual
from oxydra.runtime import Runtime
from oxydra.tools.confine import Workspace
from oxydra.tools.gate import Gate
from oxydra.tools.media import Outgoing
from oxydra.tools.registry import ToolRegistry
from oxydra.transport import Routes
from tests.broker_kit import broker_world
from tests.conftest import eventually
from tests.fake_telegram import TOKEN, FakeTelegram
from tests.scripted import MODEL, Scripted
from tests.test_gateway import Running

GROUP = -1001234567890
QUICK = Pacing(private=0.02, group=0.02, typing=0.05, first=0.0, longest=0.2)


class Chatting(Running):
    """`fake` is Telegram; 42 is Ann and 43 Ben, both listed, in `GROUP` too."""

    def __init__(
        self,
        path,
        fake,
        provider,
        *,
        pacing=QUICK,
        tools=(),
        rules=(),
        private=(),
        gateway=None,
        **telegram,
    ):
        self.fake = fake
        self.pacing = pacing
        self.received = {}
        self.folder = path.parent
        self.private = [parse_virtual(one) for one in private]
        for root in ("shared", "tmp", "vault"):
            (self.folder / root).mkdir(exist_ok=True)
        self.telegram_config = TelegramConfig(
            **{
                "enabled": True,
                "api_url": fake.url,
                "polling_timeout_secs": 1,
                "senders": (
                    SenderConfig(platform_ids=("42",), display_name="Ann"),
                    SenderConfig(platform_ids=("43",), display_name="Ben"),
                ),
                "groups": (str(GROUP),),
                **telegram,
            }
        )
        self.rules = rules
        self.gateway_config = gateway
        super().__init__(path, provider, tools=tools, approvals=lambda: self.asks)

    def start(self, port=0):
        self.world = contextlib.ExitStack()
        routes = Routes([telegram_route(self.telegram_config, TOKEN)])
        transport = self.world.enter_context(
            broker_world(Destinations(routes), secrets=[TOKEN])
        ).transport
        self.config = self.gateway_config or self.config
        super().start(port)
        self.bot = Telegram(
            *(self.telegram_config, transport, self.hub, self.store),
            commands=self.gateway.commands,
            health=lambda: {"running_turns": 0, "model": {"provider": "p", "model": "m"}},
            approvals=self.gateway._approvals,
            keep=self.keep,
            audit=self.folder / "audit.log",
            tools=[spec.name for spec in self.hub._runtime.tools],
            pacing=self.pacing,
        )
        self.outgoing.attach(self.bot)
        self.hub.terms_of = lambda turn: (None, self.bot.terms_of(turn))
        self.bot.listen()
        self.bot.start()

    def runtime(self, store):
        limits = {"exfiltration": "ask", "expiry_secs": 600}
        rules = Rules.from_json({"rules": [list(self.rules)], **limits})
        self.asks = Approvals(store, rules, sandboxed=True)
        self.outgoing = Outgoing()
        self.workspace = Workspace.at(self.folder)
        registry = ToolRegistry(names=(), extra=self.tools)
        return Runtime(
            store=store,
            provider=self.provider,
            model=MODEL,
            gate=Gate(
                registry,
                {"media": self.outgoing, "workspace": self.workspace},
                approve=self.asks.check,
                private=self.private,
            ),
            tools=registry.specs,
            config=RuntimeConfig(),
        )

    @contextlib.contextmanager
    def keep(self, name):
        data = bytearray()
        yield Kept(f"/shared/received/{name}", data.extend)
        self.received[name] = bytes(data)

    def stop(self):
        assert self.bot.stop(30)
        super().stop()
        self.workspace.close()
        self.world.close()

    def settled(self):
        """Wait until every update was taken and nothing is owed."""
        owed = self.store.owed
        eventually(lambda: self.fake.confirmed, timeout=300)
        eventually(lambda: not self.store.waiting("telegram"), timeout=300)
        eventually(lambda: not owed("telegram", "waiting"), timeout=300)
        eventually(lambda: not owed("telegram", "ready"), timeout=300)

    def prompts(self):
        """What the model was told by people, in order."""
        return [
            [m.content for m in request.messages if m.role == "user"][-1]
            for request in self.provider.requests
        ]


@contextlib.contextmanager
def chatting(path, *steps, provider=None, **more):
    with FakeTelegram() as fake:
        world = Chatting(path / "db", fake, provider or Scripted(*steps), **more)
        try:
            yield world
        finally:
            world.stop()
