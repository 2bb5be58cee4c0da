"""HOST PORT USER KNOWN_HOSTS COMMAND: logs in with asyncssh and a key of the
agent, runs COMMAND, and prints what it says."""

import asyncio
import sys

import asyncssh

host, port, user, known_hosts, command = sys.argv[1:]


async def login():
    async with asyncssh.connect(
        host, int(port), username=user, known_hosts=known_hosts, config=None
    ) as connection:
        done = await connection.run(command, check=True)
        sys.stdout.write(done.stdout)


asyncio.run(login())
