"""Names of containers: which are allowed, and new ones for those who give none.

Source of the rules: moby ``daemon/names/names.go``, ``daemon/names.go``.
"""

from __future__ import annotations

import re
import secrets

from imgstore.errors import InvalidError

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")
_LENGTH_MAX = 255
"""Docker knows no limit; names are compared with patterns, and shown."""


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_QUALITIES = _words(
    """
    able amber ample arctic azure blithe bold brave breezy brisk calm candid civil clear clever coral cosmic crisp dapper deft
    eager early easy fabled fair fancy fleet fond frank fresh gentle glad golden grand happy hardy hazel honest humble ideal
    jolly keen kind lively lucid lucky lunar mellow merry mighty mild misty modest neat nimble noble polite proud quick quiet
    rapid ready regal robust rustic sable serene sharp silent silver sincere sleek smart solar solid spry stable steady still
    sturdy sunny swift tender tidy tranquil trusty upbeat valiant velvet vivid warm wise witty zesty
    """
)
_CREATURES = _words(
    """
    adder albatross alpaca antelope badger beaver bison bobcat buzzard camel caribou cheetah chough condor cormorant crane
    cricket curlew dingo dolphin dormouse egret eland falcon ferret finch fulmar gannet gazelle gecko gibbon grebe grouse hare
    hedgehog heron hoopoe hornet ibex ibis impala jackdaw jaguar kestrel kingfisher kite koala lapwing lemur leopard linnet llama
    lynx magpie mallard manatee marmot marten martin mongoose moose narwhal newt nuthatch ocelot oriole osprey otter owl panda
    panther partridge pelican petrel pika plover puffin quail quokka raven redstart robin salmon sandpiper seal serval shrew
    skylark sparrow stoat stork swallow swift tapir teal tern thrush toucan turtle vole walrus warbler weasel wombat wren yak
    zebra
    """
)


def check_container_name(name: str) -> str:
    """The name without the slash that it may begin with.

    Raises:
        InvalidError: no container can have it; docker's words.
    """
    plain = name.removeprefix("/")
    if _NAME.fullmatch(plain) is None:
        raise InvalidError(f"Invalid container name ({name[:_LENGTH_MAX]}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
    if len(plain) > _LENGTH_MAX:
        raise InvalidError(f"Invalid container name ({plain[:40]}…): it has {len(plain)} characters, {_LENGTH_MAX} are allowed")
    return plain


def generate_container_name() -> str:
    """A name of two words, one of some ten thousand."""
    return f"{secrets.choice(_QUALITIES)}_{secrets.choice(_CREATURES)}"
