# SPDX-License-Identifier: Apache-2.0
"""A move of a real guest that the tests break from the confirmation on."""
import vm_support
from vm_support import LIMIT_S


class Move:
    """A move over a link that can be cut."""

    def __init__(self, lab, receive=(), migrate=()):
        self.lab, self.migrate_args = lab, migrate
        self.source = lab.guest()
        self.target = lab.target(self.source)
        self.target.pages = self.source.pages
        self.receive = lab.receive(self.target, *receive)
        self.link = lab.forwarder(self.receive)

    def begin(self):
        self.migrate = self.lab.migrate(self.source, self.link.address, *self.migrate_args)

    def until_pushing(self):
        """The guest runs on the target, and no pushed page gets through. Returns the gate of the push."""
        gate = self.link.hold("PageRun", "bulk")
        self.begin()
        gate.wait(LIMIT_S)
        self.receive.stage("push")
        self.target.works()
        return gate

    def arrived(self, resumes):
        migrated, received = self.lab.arrived(self.source, self.target, self.migrate, self.receive)
        assert received["resumes"] == resumes or resumes is None, received
        assert received["pages_known"] == received["pages_total"], received
        return migrated, received

    def waits(self):
        """The guest needs pages that nobody brings. It is not told anything else instead."""
        self.lab.current = None
        vm_support.wait_for("a thread of the guest waits for a page", self.target.waits_for_pages)
        assert self.target.is_alive()
        assert self.source.status() == "postmigrate", self.source.status()
        assert self.source.events()[-1] == "STOP", self.source.events()

    def ends_waiting(self, command, *texts):
        last = command.end(3)
        for text in texts:
            assert text in last["error"], f"no '{text}' in: {last['error']}"
