"""What a person can do about an answer: a few words behind the error's own, which says what was wrong. Pure."""

from __future__ import annotations

from wakegate_client import APIError

_BY_STATUS = {
    401: "`wakegate login` remembers a key, WAKEGATE_API_KEY or --api-key give one",
    403: "another key may: `wakegate login --list` shows those remembered, docs/security.md what a role may",
    413: "the limit is the gateway's: `wakegate config` shows its settings",
    429: "wait and try again, or end what is not needed: `wakegate ls`, `wakegate rm`",
    502: "`wakegate logs ID` shows what became of the session",
    503: "`wakegate top` shows what its pools do, `wakegate doctor` on its machine what is amiss",
    504: "`wakegate logs ID` shows what became of the session",
}
_BY_CODE = {
    "SESSION_NOT_FOUND": "`wakegate ls --state all` shows the sessions there are",
    "RUNTIME_NOT_FOUND": "`wakegate runtimes ls` shows the runtimes there are",
}


def advice(error: APIError) -> str:
    """What to do about a refusal; empty where only its own text can say. The code is looked at before the status."""
    return _BY_CODE.get(error.code) or _BY_STATUS.get(error.status, "")


def advice_unreachable(text: str) -> str:
    """What to do where nothing answered. `text`: the error's, as httpx and the system word it."""
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "--ca names the certificates to trust"
    if "WRONG_VERSION_NUMBER" in text:
        return "something answers there, but not https: name it with http://"
    if "Wakegate does" in text:  # something else answers there
        return "--url, WAKEGATE_URL or `wakegate login` name the gateway"
    if "broke off" in text or "disconnected" in text:
        return "is the gateway still running? What it had begun it ends: `wakegate ls` shows what there is"
    return "is a gateway running there? `wakegate serve` starts one, --url names another"
