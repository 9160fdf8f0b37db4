"""`snose witness`: the witness of the logs of others, with a folder of its own for key and memory."""

import json
import os
import time
from pathlib import Path
from typing import Annotated, Final

import typer
import uvicorn

from app.api.connections import Patience
from app.domain.notes import NoteMalformed
from app.errors import UnsafeSetting
from app.process import configure_logs
from app.sealing.cosigning import private_key_text, read_cosigner
from app.storage.witness_state import WitnessState
from app.witness import Witness, create_witness

SEED: Final = 32
RECEIVE_SECONDS: Final = 60
CONNECTIONS: Final = 512
"""What it bears of its clients: as much as a worker of the service does by default."""

command = typer.Typer(
    name="witness",
    help="A witness (C2SP tlog-witness): cosigns a log only as long as it goes on from what was cosigned before.",
    no_args_is_help=True,
)

Folder = Annotated[Path, typer.Option("--data", help="Folder of the witness's key and memory.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one line of JSON on stdout.")]


@command.command()
def init(
    data: Folder,
    name: Annotated[str, typer.Option(help="Name of the witness, such as witness.example.org/w1.")],
    *,
    as_json: AsJson = False,
) -> None:
    """Make the key and the empty memory of a new witness; shows its verification key."""
    try:
        text = private_key_text(name, os.urandom(SEED))
    except NoteMalformed as error:
        message = f"A witness cannot have this name: {error}."
        raise UnsafeSetting(message) from None
    WitnessState.create(data, text)
    vkey = read_cosigner(WitnessState.key_file(data)).vkey
    typer.echo(json.dumps({"key": vkey}) if as_json else f"Verification key, for SNOSE_WITNESS_KEY: {vkey}")


@command.command()
def serve(
    data: Folder,
    log: Annotated[list[str], typer.Option(help="Verification key of a log's service; once for each key.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 picks one.")] = 8010,
    *,
    as_json: AsJson = False,
) -> None:
    """Cosign until stopped."""
    cosigner = read_cosigner(WitnessState.key_file(data))
    state = WitnessState(data)
    try:
        app = create_witness(Witness(cosigner, log, state, time.time))
    except NoteMalformed as error:
        state.close()
        message = f"--log takes the verification key of a log, name+hash+base64: {error}."
        raise UnsafeSetting(message) from None
    except UnsafeSetting:
        state.close()
        raise
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=Patience(RECEIVE_SECONDS, CONNECTIONS).connection(),
        log_level="warning",
        access_log=False,
        server_header=False,
    )
    socket = config.bind_socket()
    # Whoever reads the line below may ask at once.
    socket.listen()
    bound = socket.getsockname()[1]
    told = {"url": f"http://{host}:{bound}", "key": cosigner.vkey}
    typer.echo(json.dumps(told) if as_json else f"Witness {cosigner.vkey} on {told['url']}")
    configure_logs()
    try:
        uvicorn.Server(config).run([socket])
    finally:
        state.close()
