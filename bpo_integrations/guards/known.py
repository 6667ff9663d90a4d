"""Names that an addition may bring in without inventing anything: technologies, peoples and languages, and the like."""

from __future__ import annotations

KNOWN_NAMES = frozenset(
    """ajax android angular ansible apache applescript arduino artisan aws azure bash bayes bayesian boolean bootstrap
    browserify c cargo carbon cargo.toml cartesian chrome clang claude cloudflare codable composer cors cron
    csharp css cuda cython dart dataframe dataframes debian delphi deno django docker dockerfile dom electron
    elixir erlang euclidean excel express fastapi fedora figma firebase firefox flask flutter fortran gaussian
    gcc gimp git github gitlab go google gradle grafana graphql gulp hadoop haskell heroku homebrew html http
    https hugo java javascript jenkins jest jinja jira jquery json jupyter kafka keras kotlin kubernetes
    lagrangian laravel latex linux lua mac macos makefile manifest markdown matlab matplotlib maven mermaid
    microsoft mongodb mysql newtonian nextjs nginx node node.js npm numpy nuxt objective-c octave opencv openssl
    oracle pandas perl php pip plotly podman poisson postgres postgresql powerpoint powershell prolog prometheus
    pydantic pytest python pytorch qt r rails react readable redis redux roblox rspec ruby rust safari sass
    scala scheme scikit-learn scipy scss seaborn selenium shell sketchup solidity spark spring sql sqlite svelte
    swift swiftui symfony tailwind tensorflow terraform tex typescript ubuntu unicode unity unix unreal vagrant
    verilog vhdl vim vite vue vuejs webpack windows word wordpress wsl xcode xml yaml yarn zig zsh afghan
    african albanian american amish anglo-saxon arab arabic aramaic argentine armenian asian athenian athenians
    australian austrian aztec babylonian balkan baltic bengali brazilian british buddhist bulgarian byzantine
    canadian cantonese caribbean castilian catalan catholic celtic chilean chinese christian colombian confucian
    croatian cuban czech danish dutch egyptian egyptians english eskimo estonian ethiopian european europe
    filipino finnish flemish french gaelic georgian german germanic gothic greek greeks hawaiian hebrew hindi
    hindu hispanic hungarian icelandic indian indigenous indonesian inuit iranian iraqi irish islamic israeli
    italian jamaican japanese jewish jews kenyan khmer korean kurdish latin latino lebanese lithuanian malay
    mandarin maori mayan mediterranean mexican mongolian moroccan muslim muslims native nepali nigerian nordic
    norse norwegian ottoman pakistani palestinian persian peruvian polish portuguese prussian punjabi roman
    romance romans romanian russian sanskrit scandinavian scots scottish semitic serbian sikh slavic slovak
    slovenian somali soviet spanish swahili swedish swiss syrian taiwanese tamil thai tibetan turkish ukrainian
    urdu uzbek venetian victorian vietnamese viking welsh western yiddish zen zulu monday tuesday wednesday
    thursday friday saturday sunday january february march april may june july august september october november
    december christmas easter earth mbps moon sun mars venus jupiter saturn mercury neptune uranus internet web
    celsius fahrenheit kelvin god bible internet""".split()
)
"""Lower-cased. What human additions bring in of this kind: languages and tools of the trade, adjectives of peoples."""
