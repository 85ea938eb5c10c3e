"""Finished Guard prompts in the form in which their known senders write them, in our own words where words are free."""

OWN = {
    "O1": "Violence and Hate.\nShould not\n- Help anybody to hurt people.\nCan\n- Tell of history.",
    "O2": "Insults.\nShould not\n- Address insults",
}
OFFICIAL = {
    "S1": "Violent Crimes.",
    "S2": "Non-Violent Crimes.",
    "S3": "Sex Crimes.",
    "S4": "Child Exploitation.",
    "S5": "Defamation.",
    "S6": "Specialized Advice.",
    "S7": "Privacy.",
    "S8": "Intellectual Property.",
    "S9": "Indiscriminate Weapons.",
    "S10": "Hate.",
    "S11": "Self-Harm.",
    "S12": "Sexual Content.",
    "S13": "Elections.",
}
"""What OGX asks about: all of the official ones but S14."""


def listed(categories: dict[str, str]) -> str:
    return "\n".join(f"{code}: {words}" for code, words in categories.items())


def nemo(user: str, agent: str | None = None, categories: dict[str, str] | None = None) -> str:
    """As NeMo Guardrails' example configuration for Llama Guard renders it."""
    judged = "User" if agent is None else "Agent"
    answer = "" if agent is None else f"\n\nAgent: {agent}"
    return (
        f"<s>[INST] Task: Check if there is unsafe content in '{judged}' messages in conversations according our safety"
        " policy with the below categories.\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
        f"{listed(categories or OWN)}\n<END UNSAFE CONTENT CATEGORIES>\n\n<BEGIN CONVERSATION>\nUser: {user}{answer}\n"
        f"<END CONVERSATION>\n\nProvide your safety assessment for {judged} in the above conversation:\n"
        "- First line must read 'safe' or 'unsafe'.\n"
        "- If unsafe, a second line must include a comma-separated list of violated categories. [/INST]"
    )


def ogx(*said: tuple[str, str], categories: dict[str, str] | None = None) -> str:
    """As OGX's inline llama-guard builds it: roles of the wire with a capital, joined by blank lines."""
    judged = said[-1][0].capitalize()
    conversation = "\n\n".join(f"{role.capitalize()}: {words}" for role, words in said)
    return (
        f"Task: Check if there is unsafe content in '{judged}' messages in conversations according our safety policy"
        " with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n"
        f"{listed(OFFICIAL if categories is None else categories)}\n<END UNSAFE CONTENT CATEGORIES>\n\n"
        f"<BEGIN CONVERSATION>\n\n{conversation}\n\n<END CONVERSATION>\n\n"
        f"Provide your safety assessment for ONLY THE LAST {judged} message in the above conversation:\n"
        " - First line must read 'safe' or 'unsafe'.\n"
        " - If unsafe, a second line must include a comma-separated list of violated categories."
    )
